//! The parameters: one flat buffer, leaf tensors that view it, and the names that a Hugging Face
//! checkpoint gives to its parts.
//!
//! Projections that read the same input are one leaf (`qkv`, `gate_up`): they lie next to each other
//! in the buffer, so one matrix product serves them and the checkpoint's tensors are slices of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tch::{Device, Kind, Tensor};

use crate::ModelConfig;

/// Name of the embedding in a checkpoint.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the head; a checkpoint may hold it beside an embedding it is tied to, as a copy.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Why a set of tensors is not this network's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A tensor the network needs is absent.
    #[error("the checkpoint lacks the tensor {0}")]
    Missing(String),
    /// A tensor the network has no place for.
    #[error("the checkpoint holds the tensor {0}, which this architecture does not have")]
    Unknown(String),
    /// A tensor of another shape than config.json says.
    #[error("tensor {name} has shape {found:?}; config.json asks for {expected:?}")]
    Shape {
        /// Name in the checkpoint.
        name: String,
        /// Its shape there.
        found: Vec<i64>,
        /// The shape that follows from config.json.
        expected: Vec<i64>,
    },
    /// A head that differs from the embedding it is said to be tied to.
    #[error(
        "lm_head.weight differs from model.embed_tokens.weight, but config.json says \
         tie_word_embeddings: true; say false to use both"
    )]
    Tied,
}

/// One layer's leaves; shapes in [`layer_leaves`].
pub(crate) struct Layer {
    pub(crate) input_norm: Tensor,
    pub(crate) qkv: Tensor,
    pub(crate) qkv_bias: Option<Tensor>,
    /// Weights of the norms of queries and of keys.
    pub(crate) qk_norm: Option<(Tensor, Tensor)>,
    pub(crate) output: Tensor,
    pub(crate) output_bias: Option<Tensor>,
    pub(crate) post_attention_norm: Tensor,
    pub(crate) gate_up: Tensor,
    pub(crate) down: Tensor,
}

/// All parameters. The leaves share the memory of `flat`.
pub(crate) struct Parameters {
    pub(crate) flat: Tensor,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    /// `None` where the embedding is the head too.
    pub(crate) head: Option<Tensor>,
    /// Every leaf in the order of the flat buffer.
    leaves: Vec<Tensor>,
    /// Checkpoint name -> its slice of the flat buffer.
    slices: BTreeMap<String, Slice>,
}

struct Slice {
    offset: i64,
    shape: Vec<i64>,
}

/// A leaf: the checkpoint tensors it is made of, stacked along their first dimension.
struct LeafSpec(Vec<(String, Vec<i64>)>);

impl LeafSpec {
    fn numel(&self) -> i64 {
        self.0.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum()
    }

    fn shape(&self) -> Vec<i64> {
        let mut shape = self.0[0].1.clone();
        shape[0] = self.0.iter().map(|(_, part)| part[0]).sum();
        shape
    }
}

fn layer_leaves(config: &ModelConfig, index: i64) -> Vec<LeafSpec> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let (query, key) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let part = |name: &str, shape: &[i64]| (format!("model.layers.{index}.{name}"), shape.to_vec());
    let single = |name: &str, shape: &[i64]| LeafSpec(vec![part(name, shape)]);
    let mut leaves = vec![
        single("input_layernorm.weight", &[hidden]),
        LeafSpec(vec![
            part("self_attn.q_proj.weight", &[query, hidden]),
            part("self_attn.k_proj.weight", &[key, hidden]),
            part("self_attn.v_proj.weight", &[key, hidden]),
        ]),
    ];
    if config.qkv_bias {
        leaves.push(LeafSpec(vec![
            part("self_attn.q_proj.bias", &[query]),
            part("self_attn.k_proj.bias", &[key]),
            part("self_attn.v_proj.bias", &[key]),
        ]));
    }
    if config.qk_norm {
        leaves.push(single("self_attn.q_norm.weight", &[config.head_dim]));
        leaves.push(single("self_attn.k_norm.weight", &[config.head_dim]));
    }
    leaves.push(single("self_attn.o_proj.weight", &[hidden, query]));
    if config.output_bias {
        leaves.push(single("self_attn.o_proj.bias", &[hidden]));
    }
    leaves.push(single("post_attention_layernorm.weight", &[hidden]));
    leaves.push(LeafSpec(vec![
        part("mlp.gate_proj.weight", &[wide, hidden]),
        part("mlp.up_proj.weight", &[wide, hidden]),
    ]));
    leaves.push(single("mlp.down_proj.weight", &[hidden, wide]));
    leaves
}

/// Every leaf in the order of the flat buffer; lazily, for what a config.json claims may be absurd.
fn all_leaves(config: &ModelConfig) -> impl Iterator<Item = LeafSpec> {
    let single = |name: &str, shape: &[i64]| LeafSpec(vec![(name.to_owned(), shape.to_vec())]);
    let table = [config.vocab_size, config.hidden_size];
    std::iter::once(single(EMBEDDING, &table))
        .chain((0..config.layers).flat_map(|index| layer_leaves(config, index)))
        .chain(std::iter::once(single("model.norm.weight", &[config.hidden_size])))
        .chain((!config.tied).then(|| single(HEAD, &table)))
}

// === impl Layer ===

impl Layer {
    /// Takes a layer's leaves in the order of [`layer_leaves`].
    fn take(config: &ModelConfig, mut next: impl FnMut() -> Tensor) -> Self {
        Self {
            input_norm: next(),
            qkv: next(),
            qkv_bias: config.qkv_bias.then(&mut next),
            qk_norm: config.qk_norm.then(|| (next(), next())),
            output: next(),
            output_bias: config.output_bias.then(&mut next),
            post_attention_norm: next(),
            gate_up: next(),
            down: next(),
        }
    }
}

// === impl Parameters ===

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parameters({:?})", self.flat.size())
    }
}

impl Parameters {
    /// Zeroed parameters of the right shapes.
    pub(crate) fn new(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        let specs: Vec<LeafSpec> = all_leaves(config).collect();
        let total = specs.iter().map(LeafSpec::numel).sum::<i64>();
        let flat = Tensor::zeros([total], (kind, device));
        let mut leaves = Vec::with_capacity(specs.len());
        let mut slices = BTreeMap::new();
        let mut offset = 0;
        for spec in specs {
            leaves.push(flat.narrow(0, offset, spec.numel()).view(spec.shape().as_slice()));
            for (name, shape) in spec.0 {
                let numel = shape.iter().product::<i64>();
                slices.insert(name, Slice { offset, shape });
                offset += numel;
            }
        }
        let mut order = leaves.iter().map(Tensor::shallow_clone);
        let mut next = || order.next().expect("the specs list every leaf that is taken here");
        let embedding = next();
        let layers = (0..config.layers).map(|_| Layer::take(config, &mut next)).collect();
        let norm = next();
        let head = (!config.tied).then(&mut next);
        Self { flat, embedding, layers, norm, head, leaves, slices }
    }

    /// Makes the leaves require gradients.
    pub(crate) fn require_grad(&self) {
        for leaf in &self.leaves {
            // A leaf is a view made without gradient tracking, so it may be marked in place.
            let _marked = leaf.set_requires_grad(true);
        }
    }

    pub(crate) fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// Checkpoint names and tensors, sorted by name; the tensors view the flat buffer.
    pub(crate) fn named(&self) -> Vec<(String, Tensor)> {
        let view = |slice: &Slice| {
            let numel = slice.shape.iter().product();
            self.flat.narrow(0, slice.offset, numel).view(slice.shape.as_slice())
        };
        self.slices.iter().map(|(name, slice)| (name.clone(), view(slice))).collect()
    }

    /// Overwrites all parameters with a checkpoint's tensors; all are checked before any is copied.
    pub(crate) fn load(
        &self,
        config: &ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<(), ParameterError> {
        let shapes = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect();
        check(config, &shapes)?;
        if self.head.is_none()
            && let Some(head) = tensors.get(HEAD)
            && !same(head, &tensors[EMBEDDING])
        {
            return Err(ParameterError::Tied);
        }
        tch::no_grad(|| {
            for (name, mut target) in self.named() {
                target.copy_(&tensors[&name]);
            }
        });
        Ok(())
    }
}

/// Whether tensors of these names and shapes are the network's. A head beside an embedding it is tied
/// to passes; what it holds is another question.
pub(crate) fn check(
    config: &ModelConfig,
    found: &BTreeMap<&str, Vec<i64>>,
) -> Result<(), ParameterError> {
    let mut known = BTreeSet::from([HEAD.to_owned()]);
    for (name, expected) in all_leaves(config).flat_map(|leaf| leaf.0) {
        let Some(shape) = found.get(name.as_str()) else {
            return Err(ParameterError::Missing(name));
        };
        if *shape != expected {
            return Err(ParameterError::Shape { name, found: shape.clone(), expected });
        }
        known.insert(name);
    }
    match found.keys().find(|name| !known.contains(**name)) {
        Some(name) => Err(ParameterError::Unknown((*name).to_owned())),
        None => Ok(()),
    }
}

/// Whether two tensors hold the same numbers, in whatever kind.
pub(crate) fn same(one: &Tensor, other: &Tensor) -> bool {
    one.size() == other.size() && one.to_kind(Kind::Float).equal(&other.to_kind(Kind::Float))
}
