//! The trainable parameters: one flat fp32 buffer, leaf tensors that view it, and the names that a
//! Hugging Face checkpoint gives to its parts.
//!
//! Projections that read the same input are one leaf (`qkv`, `gate_up`): they lie next to each other
//! in the buffer, so one matrix product serves them and the checkpoint's tensors are slices of it.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::ModelConfig;

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
}

/// One layer's leaves; shapes in [`layer_leaves`].
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Tensor,
    pub(crate) qkv: Tensor,
    pub(crate) q_norm: Tensor,
    pub(crate) k_norm: Tensor,
    pub(crate) output: Tensor,
    pub(crate) post_attention_norm: Tensor,
    pub(crate) gate_up: Tensor,
    pub(crate) down: Tensor,
}

/// All parameters. The leaves share the memory of `flat`.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(crate) flat: Tensor,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    /// Every leaf in the order of the flat buffer.
    leaves: Vec<Tensor>,
    /// Checkpoint name -> its slice of the flat buffer.
    slices: BTreeMap<String, Slice>,
}

#[derive(Clone, Debug)]
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
    let part =
        |name: &str, shape: &[i64]| (format!("model.layers.{index}.{name}.weight"), shape.to_vec());
    vec![
        LeafSpec(vec![part("input_layernorm", &[hidden])]),
        LeafSpec(vec![
            part("self_attn.q_proj", &[query, hidden]),
            part("self_attn.k_proj", &[key, hidden]),
            part("self_attn.v_proj", &[key, hidden]),
        ]),
        LeafSpec(vec![part("self_attn.q_norm", &[config.head_dim])]),
        LeafSpec(vec![part("self_attn.k_norm", &[config.head_dim])]),
        LeafSpec(vec![part("self_attn.o_proj", &[hidden, query])]),
        LeafSpec(vec![part("post_attention_layernorm", &[hidden])]),
        LeafSpec(vec![
            part("mlp.gate_proj", &[wide, hidden]),
            part("mlp.up_proj", &[wide, hidden]),
        ]),
        LeafSpec(vec![part("mlp.down_proj", &[hidden, wide])]),
    ]
}

fn all_leaves(config: &ModelConfig) -> Vec<LeafSpec> {
    let single = |name: &str, shape: Vec<i64>| LeafSpec(vec![(name.to_owned(), shape)]);
    let mut leaves =
        vec![single("model.embed_tokens.weight", vec![config.vocab_size, config.hidden_size])];
    leaves.extend((0..config.layers).flat_map(|index| layer_leaves(config, index)));
    leaves.push(single("model.norm.weight", vec![config.hidden_size]));
    leaves
}

impl Parameters {
    /// Zeroed parameters of the right shapes.
    pub(crate) fn new(config: &ModelConfig, device: Device) -> Self {
        let specs = all_leaves(config);
        let total = specs.iter().map(LeafSpec::numel).sum::<i64>();
        let flat = Tensor::zeros([total], (Kind::Float, device));
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
        let layers = (0..config.layers)
            .map(|_| Layer {
                input_norm: next(),
                qkv: next(),
                q_norm: next(),
                k_norm: next(),
                output: next(),
                post_attention_norm: next(),
                gate_up: next(),
                down: next(),
            })
            .collect();
        let norm = next();
        Self { flat, embedding, layers, norm, leaves, slices }
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
    pub(crate) fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<(), ParameterError> {
        for (name, slice) in &self.slices {
            let tensor = tensors.get(name).ok_or_else(|| ParameterError::Missing(name.clone()))?;
            if tensor.size() != slice.shape {
                return Err(ParameterError::Shape {
                    name: name.clone(),
                    found: tensor.size(),
                    expected: slice.shape.clone(),
                });
            }
        }
        let known = |name: &str| self.slices.contains_key(name) || name == "lm_head.weight";
        if let Some(name) = tensors.keys().find(|name| !known(name)) {
            return Err(ParameterError::Unknown(name.clone()));
        }
        tch::no_grad(|| {
            for (name, mut target) in self.named() {
                target.copy_(&tensors[&name]);
            }
        });
        Ok(())
    }
}
