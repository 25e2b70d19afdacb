//! The Qwen3 transformer: RMSNorm, rotary positions, grouped-query attention with query/key norms,
//! SwiGLU, tied embeddings. Two passes over one set of parameters: whole sequences for training,
//! and appended tokens over a KV cache for sampling.

use std::collections::BTreeMap;

use tch::{Device, IndexOp as _, Kind, Tensor};

use crate::{
    CacheFull, KvCache, ModelConfig, ParameterError,
    parameters::{Layer, Parameters},
    rope::Rope,
};

/// A policy: a configuration and its weights on one device, in fp32.
#[derive(Debug)]
pub struct Policy {
    config: ModelConfig,
    parameters: Parameters,
    rope: Rope,
    device: Device,
}

/// How the tokens of several sequences, packed one after another, map to a padded [B, T] grid.
struct Packing {
    /// Token index of every grid cell; padding repeats some real token. `None` when nothing is
    /// padded.
    cells: Option<Tensor>,
    /// Grid cell of every token; `None` when nothing is padded.
    tokens: Option<Tensor>,
    rows: i64,
    width: i64,
}

/// Where the tokens of one `extend` go in the cache and what they may attend to.
struct Extension {
    packing: Packing,
    /// `[N]` slot of every token.
    slots: Tensor,
    /// `[N]` position of every token.
    positions: Tensor,
    /// `[B]` slots whose keys are read; `None` when they are the first B, read where they are.
    rows: Option<Tensor>,
    /// Keys read, per row (S).
    keys: i64,
    /// [B, 1, G * T, S], 0 where attention is allowed, -inf elsewhere.
    bias: Tensor,
}

impl Policy {
    /// A policy with the tensors of a checkpoint, by their Hugging Face names.
    ///
    /// # Errors
    /// A missing, unknown or misshapen tensor.
    pub fn new(
        config: ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self, ParameterError> {
        let parameters = Parameters::new(&config, device);
        parameters.load(tensors)?;
        let rope = Rope::new(&config, device);
        Ok(Self { config, parameters, rope, device })
    }

    /// A policy with random weights: normal with standard deviation 0.02, norms at one.
    #[must_use]
    pub fn random(config: ModelConfig, seed: i64, device: Device) -> Self {
        tch::manual_seed(seed);
        let parameters = Parameters::new(&config, device);
        for (name, mut tensor) in parameters.named() {
            if name.ends_with("norm.weight") {
                let _filled = tensor.fill_(1.0);
            } else {
                let _filled = tensor.normal_(0.0, 0.02);
            }
        }
        let rope = Rope::new(&config, device);
        Self { config, parameters, rope, device }
    }

    /// Shape of the network.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Device the weights are on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Replaces all weights in place; nothing changes if one does not fit.
    ///
    /// # Errors
    /// A missing, unknown or misshapen tensor.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<(), ParameterError> {
        self.parameters.load(tensors)
    }

    /// Checkpoint names and tensors, sorted by name; the tensors are views of the live weights.
    #[must_use]
    pub fn named_tensors(&self) -> Vec<(String, Tensor)> {
        self.parameters.named()
    }

    /// All parameters as one fp32 vector; writing to it changes the network.
    #[must_use]
    pub fn flat(&self) -> &Tensor {
        &self.parameters.flat
    }

    /// The leaves that receive gradients, in the order of [`Self::flat`].
    #[must_use]
    pub fn leaves(&self) -> &[Tensor] {
        self.parameters.leaves()
    }

    /// Tracks gradients from here on.
    pub fn train(&self) {
        self.parameters.require_grad();
    }

    /// Logits [B, T, V] of whole sequences `tokens` [B, T] (int64). Sequences shorter than T are
    /// padded at their end with any token: attention is causal, so padding changes nothing before it.
    #[must_use]
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        self.hidden(tokens).matmul(&self.parameters.embedding.tr())
    }

    /// Final hidden states [B, T, E], normalised: [`Self::head`] turns rows of them into logits.
    #[must_use]
    pub fn hidden(&self, tokens: &Tensor) -> Tensor {
        let (batch, time) = tokens.size2().expect("tokens are [B, T]");
        let positions = Tensor::arange(time, (Kind::Int64, self.device)).repeat([batch]);
        let rotation = self.rope.at(&positions);
        let mut hidden = self.embed(&tokens.reshape([-1]));
        for layer in &self.parameters.layers {
            let (query, key, value) = self.project(layer, &hidden, &rotation);
            // [B * T, heads, D] -> [B, heads, T, D]
            let split = |x: &Tensor, heads| {
                x.view([batch, time, heads, self.config.head_dim]).transpose(1, 2)
            };
            let attended = Tensor::scaled_dot_product_attention::<&Tensor>(
                &split(&query, self.config.heads),
                &self.repeat_heads(&split(&key, self.config.kv_heads)),
                &self.repeat_heads(&split(&value, self.config.kv_heads)),
                None,
                0.0,
                true,
                None,
                false,
            );
            hidden =
                self.close(layer, &hidden, &attended.transpose(1, 2).reshape([batch * time, -1]));
        }
        self.normalise(&hidden, &self.parameters.norm).view([batch, time, -1])
    }

    /// Logits [.., V] of normalised hidden states [.., E].
    #[must_use]
    pub fn head(&self, hidden: &Tensor) -> Tensor {
        hidden.matmul(&self.parameters.embedding.tr())
    }

    /// Appends tokens to sequences in the cache: `appended` lists distinct slots, each with at least
    /// one token. Returns the logits [B, V] after the last token of each. No gradients.
    ///
    /// # Errors
    /// A slot that cannot hold its tokens; then nothing is changed.
    pub fn extend(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor, CacheFull> {
        for (slot, tokens) in appended {
            cache.reserve(*slot, tokens.len())?;
        }
        let groups = groups_of_like_length(appended);
        let parts: Vec<Tensor> = groups
            .iter()
            .map(|group| {
                let rows: Vec<_> = group.iter().map(|row| appended[*row]).collect();
                tch::no_grad(|| self.extend_group(cache, &rows))
            })
            .collect::<Result<_, _>>()?;
        let mut place = vec![0i64; appended.len()];
        groups.iter().flatten().enumerate().for_each(|(at, row)| place[*row] = at as i64);
        let place = Tensor::from_slice(&place).to(self.device);
        Ok(Tensor::cat(&parts, 0).index_select(0, &place))
    }

    fn extend_group(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor, CacheFull> {
        let extension = self.plan(cache, appended)?;
        let tokens: Vec<i64> =
            appended.iter().flat_map(|(_, tokens)| tokens.iter().map(|t| i64::from(*t))).collect();
        let mut hidden = self.embed(&Tensor::from_slice(&tokens).to(self.device));
        let rotation = self.rope.at(&extension.positions);
        for (index, layer) in self.parameters.layers.iter().enumerate() {
            let (query, key, value) = self.project(layer, &hidden, &rotation);
            let keys = store(&mut cache.keys[index], &extension, &key);
            let values = store(&mut cache.values[index], &extension, &value);
            let attended = self.attend(&query, &keys, &values, &extension);
            hidden = self.close(layer, &hidden, &attended);
        }
        let mut last = Vec::with_capacity(appended.len());
        let mut count = 0i64;
        for (slot, tokens) in appended {
            cache.lengths[*slot] += tokens.len();
            count += tokens.len() as i64;
            last.push(count - 1);
        }
        let last = hidden.index_select(0, &Tensor::from_slice(&last).to(self.device));
        Ok(self.head(&self.normalise(&last, &self.parameters.norm)))
    }

    fn plan(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Extension, CacheFull> {
        let (mut slots, mut positions, mut keys) = (Vec::new(), Vec::new(), 0);
        for (slot, tokens) in appended {
            let start = cache.reserve(*slot, tokens.len())?;
            for offset in 0..tokens.len() {
                slots.push(*slot as i64);
                positions.push((start + offset) as i64);
            }
            keys = keys.max((start + tokens.len()) as i64);
        }
        let read_in_place = rows_in_place(appended);
        let packing = match read_in_place {
            Some(span) => {
                let mut lengths = vec![0; span];
                appended.iter().for_each(|(slot, tokens)| lengths[*slot] = tokens.len());
                Packing::new(&lengths, self.device)
            }
            None => {
                let lengths: Vec<usize> = appended.iter().map(|(_, tokens)| tokens.len()).collect();
                Packing::new(&lengths, self.device)
            }
        };
        let positions = Tensor::from_slice(&positions).to(self.device);
        let grid = packing.pad(&positions).view([packing.rows, 1, packing.width, 1]);
        let forbidden = Tensor::arange(keys, (Kind::Int64, self.device)).gt_tensor(&grid);
        let bias = Tensor::zeros(forbidden.size(), (Kind::Float, self.device))
            .masked_fill(&forbidden, f64::NEG_INFINITY)
            .repeat([1, 1, self.config.group(), 1]);
        let rows = read_in_place.is_none().then(|| {
            let rows: Vec<i64> = appended.iter().map(|(slot, _)| *slot as i64).collect();
            Tensor::from_slice(&rows).to(self.device)
        });
        let slots = Tensor::from_slice(&slots).to(self.device);
        Ok(Extension { packing, slots, positions, rows, keys, bias })
    }

    /// Attention of packed queries [N, H, D] over the cache's rows. Query heads that share a
    /// key/value head are laid along the time axis, so keys are never copied per head.
    fn attend(&self, query: &Tensor, keys: &Tensor, values: &Tensor, at: &Extension) -> Tensor {
        let (kv_heads, group, dim) =
            (self.config.kv_heads, self.config.group(), self.config.head_dim);
        let (rows, width) = (at.packing.rows, at.packing.width);
        let query = at.packing.pad(query).view([rows, width, kv_heads, group, dim]);
        let query = query.permute([0, 2, 3, 1, 4]).reshape([rows, kv_heads, group * width, dim]);
        let attended = Tensor::scaled_dot_product_attention(
            &query,
            keys,
            values,
            Some(&at.bias),
            0.0,
            false,
            None,
            false,
        );
        let attended = attended.view([rows, kv_heads, group, width, dim]).permute([0, 3, 1, 2, 4]);
        at.packing.unpad(&attended.reshape([rows * width, -1]))
    }

    fn embed(&self, tokens: &Tensor) -> Tensor {
        Tensor::embedding(&self.parameters.embedding, tokens, -1, false, false)
    }

    fn normalise(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        let width = [*weight.size().last().expect("a norm weight has one dimension")];
        x.rms_norm(width, Some(weight), self.config.rms_norm_eps)
    }

    /// Queries [N, H, D], keys and values [N, K, D] of hidden states [N, E], normed and rotated.
    fn project(
        &self,
        layer: &Layer,
        hidden: &Tensor,
        rotation: &(Tensor, Tensor),
    ) -> (Tensor, Tensor, Tensor) {
        let (heads, kv_heads, dim) =
            (self.config.heads, self.config.kv_heads, self.config.head_dim);
        let mixed = self.normalise(hidden, &layer.input_norm).matmul(&layer.qkv.tr());
        let mixed = mixed.view([-1, heads + 2 * kv_heads, dim]);
        let query = self.normalise(&mixed.narrow(1, 0, heads), &layer.q_norm);
        let key = self.normalise(&mixed.narrow(1, heads, kv_heads), &layer.k_norm);
        let value = mixed.narrow(1, heads + kv_heads, kv_heads);
        (Rope::rotate(&query, rotation), Rope::rotate(&key, rotation), value)
    }

    /// The rest of a layer after attention: output projection and SwiGLU, each added to the stream.
    fn close(&self, layer: &Layer, hidden: &Tensor, attended: &Tensor) -> Tensor {
        let hidden = hidden + attended.matmul(&layer.output.tr());
        let mixed = self.normalise(&hidden, &layer.post_attention_norm).matmul(&layer.gate_up.tr());
        let halves = mixed.chunk(2, -1);
        &hidden + (halves[0].silu() * &halves[1]).matmul(&layer.down.tr())
    }

    /// [B, K, T, D] -> [B, H, T, D]
    fn repeat_heads(&self, x: &Tensor) -> Tensor {
        let (batch, kv_heads, time, dim) = x.size4().expect("keys are [B, K, T, D]");
        let group = self.config.group();
        if group == 1 {
            return x.shallow_clone();
        }
        x.unsqueeze(2).expand([batch, kv_heads, group, time, dim], false).reshape([
            batch,
            kv_heads * group,
            time,
            dim,
        ])
    }
}

/// Rows that are run together: attention pads a group to its longest row, so a row that decodes one
/// token must not wait for one that prefills a tool's result. Within a group the longest row is less
/// than twice the shortest.
fn groups_of_like_length(appended: &[(usize, &[u32])]) -> Vec<Vec<usize>> {
    let length = |row: usize| appended[row].1.len();
    let mut order: Vec<usize> = (0..appended.len()).collect();
    order.sort_by_key(|row| length(*row));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for row in order {
        match groups.last_mut() {
            Some(group) if length(row) < 2 * length(group[0]) => group.push(row),
            _ => groups.push(vec![row]),
        }
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// How many of the first slots to read in place, the idle ones among them too: copying the keys and
/// values of a row costs more than attending to them. `None` where fewer than half of them would be
/// of use. The rows must come in the order of their slots.
fn rows_in_place(appended: &[(usize, &[u32])]) -> Option<usize> {
    let in_order = appended.is_sorted_by(|(one, _), (next, _)| one < next);
    let span = appended.last().map_or(0, |(slot, _)| slot + 1);
    (in_order && span <= 2 * appended.len()).then_some(span)
}

/// Writes packed keys or values [N, K, D] to their slots and returns the rows read, [B, K, S, D].
fn store(table: &mut Tensor, at: &Extension, packed: &Tensor) -> Tensor {
    // Two index tensors with a slice between them: the indexed shape is [N, K, D].
    let indices = [Some(&at.slots), None, Some(&at.positions)];
    let _stored = table.index_put_(&indices, packed, false);
    let rows = match &at.rows {
        Some(rows) => table.narrow(2, 0, at.keys).index_select(0, rows),
        None => table.i(..at.packing.rows),
    };
    rows.narrow(2, 0, at.keys)
}

// === impl Packing ===

impl Packing {
    /// A row without tokens is all padding.
    fn new(lengths: &[usize], device: Device) -> Self {
        let width = lengths.iter().copied().max().unwrap_or(0);
        if lengths.iter().all(|length| *length == width) {
            let (rows, width) = (lengths.len() as i64, width as i64);
            return Self { cells: None, tokens: None, rows, width };
        }
        let (mut cells, mut tokens, mut start) = (Vec::new(), Vec::new(), 0);
        for (row, length) in lengths.iter().enumerate() {
            for column in 0..width {
                let token = if *length == 0 { 0 } else { start + column.min(length - 1) };
                cells.push(token as i64);
            }
            tokens.extend((0..*length).map(|column| (row * width + column) as i64));
            start += length;
        }
        Self {
            cells: Some(Tensor::from_slice(&cells).to(device)),
            tokens: Some(Tensor::from_slice(&tokens).to(device)),
            rows: lengths.len() as i64,
            width: width as i64,
        }
    }

    /// [N, ..] -> [B * T, ..]
    fn pad(&self, packed: &Tensor) -> Tensor {
        self.cells
            .as_ref()
            .map_or_else(|| packed.shallow_clone(), |cells| packed.index_select(0, cells))
    }

    /// [B * T, ..] -> [N, ..]
    fn unpad(&self, grid: &Tensor) -> Tensor {
        self.tokens
            .as_ref()
            .map_or_else(|| grid.shallow_clone(), |tokens| grid.index_select(0, tokens))
    }
}
