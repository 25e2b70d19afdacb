//! Where appended tokens go in the KV cache, and how they attend to what it holds: padded to a grid, in
//! libtorch's fused attention.

use tch::{Device, IndexOp as _, Kind, Tensor};

use crate::{
    CacheFull, KvCache, Policy,
    packing::{Packing, rows_in_place},
};

/// What one layer attends with: queries [N, H, D], keys and values [N, K, D].
pub(crate) struct Projected {
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
}

/// The tokens of one forward pass over the cache.
pub(crate) struct Extension {
    /// `[N]` slot of every token.
    slots: Tensor,
    /// `[N]` position of every token.
    pub(crate) positions: Tensor,
    grid: Grid,
}

/// How the cache is read: rows of any number of tokens, padded to the longest.
struct Grid {
    packing: Packing,
    /// `[B]` slots whose keys are read; `None` when they are the first B, read where they are.
    rows: Option<Tensor>,
    /// Keys read, per row (S).
    keys: i64,
    /// [B, 1, G * T, S], 0 where attention is allowed, -inf elsewhere.
    bias: Tensor,
}

impl Extension {
    /// Plans the append of `appended` (distinct slots, each with at least one token).
    ///
    /// # Errors
    /// A slot that cannot hold its tokens.
    pub(crate) fn plan(
        policy: &Policy,
        cache: &KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Self, CacheFull> {
        let device = policy.device();
        let (mut slots, mut positions, mut keys) = (Vec::new(), Vec::new(), 0);
        for (slot, tokens) in appended {
            let start = cache.reserve(*slot, tokens.len())?;
            slots.extend(tokens.iter().map(|_| *slot as i64));
            positions.extend((start..start + tokens.len()).map(|position| position as i64));
            keys = keys.max(start + tokens.len());
        }
        let positions = Tensor::from_slice(&positions).to(device);
        let grid = Grid::plan(policy, appended, keys as i64, &positions);
        let slots = Tensor::from_slice(&slots).to(device);
        Ok(Self { slots, positions, grid })
    }

    /// Writes one layer's keys and values and attends to the cache: [N, H * D].
    pub(crate) fn attend(
        &self,
        policy: &Policy,
        cache: &mut KvCache,
        layer: usize,
        projected: &Projected,
    ) -> Tensor {
        let (keys, values) = (&mut cache.keys[layer], &mut cache.values[layer]);
        // Two index tensors with a slice between them: the indexed shape is [N, K, D].
        let indices = [Some(&self.slots), None, Some(&self.positions)];
        let _stored = keys.index_put_(&indices, &projected.key, false);
        let _stored = values.index_put_(&indices, &projected.value, false);
        self.grid.attend(policy, &projected.query, keys, values)
    }
}

impl Grid {
    fn plan(policy: &Policy, appended: &[(usize, &[u32])], keys: i64, positions: &Tensor) -> Self {
        let device = policy.device();
        let in_place = rows_in_place(appended);
        let lengths = match in_place {
            Some(span) => {
                let mut lengths = vec![0; span];
                appended.iter().for_each(|(slot, tokens)| lengths[*slot] = tokens.len());
                lengths
            }
            None => appended.iter().map(|(_, tokens)| tokens.len()).collect(),
        };
        let packing = Packing::new(&lengths, device);
        let bias = causal_bias(policy, &packing, positions, keys);
        let rows = in_place.is_none().then(|| {
            let slots: Vec<i64> = appended.iter().map(|(slot, _)| *slot as i64).collect();
            Tensor::from_slice(&slots).to(device)
        });
        Self { packing, rows, keys, bias }
    }

    /// Attention of packed queries [N, H, D]. Query heads that share a key/value head are laid along
    /// the time axis, so keys are never copied per head.
    fn attend(&self, policy: &Policy, query: &Tensor, keys: &Tensor, values: &Tensor) -> Tensor {
        let config = policy.config();
        let (kv_heads, group, dim) = (config.kv_heads, config.group(), config.head_dim);
        let (rows, width) = (self.packing.rows, self.packing.width);
        let query = self.packing.pad(query).view([rows, width, kv_heads, group, dim]);
        let query = query.permute([0, 2, 3, 1, 4]).reshape([rows, kv_heads, group * width, dim]);
        let attended = Tensor::scaled_dot_product_attention(
            &query,
            &self.read(keys),
            &self.read(values),
            Some(&self.bias),
            0.0,
            false,
            None,
            false,
        );
        let attended = attended.view([rows, kv_heads, group, width, dim]).permute([0, 3, 1, 2, 4]);
        self.packing.unpad(&attended.reshape([rows * width, -1]))
    }

    /// The rows of a table that are read: [B, K, S, D].
    fn read(&self, table: &Tensor) -> Tensor {
        match &self.rows {
            Some(rows) => table.narrow(2, 0, self.keys).index_select(0, rows),
            None => table.i(..self.packing.rows).narrow(2, 0, self.keys),
        }
    }
}

/// [B, 1, G * T, S]: a token sees the positions up to its own.
fn causal_bias(policy: &Policy, packing: &Packing, positions: &Tensor, keys: i64) -> Tensor {
    let device: Device = policy.device();
    let grid = packing.pad(positions).view([packing.rows, 1, packing.width, 1]);
    let forbidden = Tensor::arange(keys, (Kind::Int64, device)).gt_tensor(&grid);
    Tensor::zeros(forbidden.size(), (policy.dtype().kind(), device))
        .masked_fill(&forbidden, f64::NEG_INFINITY)
        .repeat([1, 1, policy.config().group(), 1])
}
