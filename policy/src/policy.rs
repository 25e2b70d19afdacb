//! A network: its configuration and weights on one device. What it computes is in `transformer`.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use tch::{Device, Kind, Tensor};

use crate::{
    CONFIG_FILE, CheckpointError, Dtype, KvCache, ModelConfig, ParameterError, Weights, cpu,
    parameters::{EMBEDDING, HEAD, Parameters, check, same},
    read_config,
    rope::Rope,
    shards::{Stored, write_shards},
};

/// A policy: a configuration and its weights on one device.
#[derive(Debug)]
pub struct Policy {
    config: ModelConfig,
    pub(crate) parameters: Parameters,
    pub(crate) rope: Rope,
    device: Device,
    dtype: Dtype,
    /// The kind of each tensor in the checkpoint it came from, which [`Self::save`] returns to; fp32
    /// for those that are not listed.
    stored: BTreeMap<String, Kind>,
    laid_out: RefCell<Option<LaidOut>>,
}

/// The weights as a CPU samples from them, made when they are first needed.
#[derive(Debug)]
pub(crate) struct LaidOut {
    pub(crate) network: cpu::Network,
    /// libtorch's count of the writes to the weights they were made of.
    writes: i64,
}

impl Policy {
    /// A policy in fp32 with the tensors of a checkpoint, by their Hugging Face names.
    ///
    /// # Errors
    /// A missing, unknown or misshapen tensor.
    pub fn new(
        config: ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self, ParameterError> {
        Self::with_dtype(config, tensors, device, Dtype::F32)
    }

    /// A policy that computes in `dtype`; only fp32 ones can be trained.
    ///
    /// # Errors
    /// A missing, unknown or misshapen tensor.
    pub fn with_dtype(
        config: ModelConfig,
        tensors: &BTreeMap<String, Tensor>,
        device: Device,
        dtype: Dtype,
    ) -> Result<Self, ParameterError> {
        let policy = Self::zeroed(config, device, dtype);
        policy.load(tensors)?;
        Ok(policy)
    }

    /// Reads a checkpoint directory, tensor by tensor: no second copy of the weights is ever held.
    ///
    /// # Errors
    /// Anything missing, damaged, not finite or not supported, by name.
    pub fn open(directory: &Path, device: Device, dtype: Dtype) -> Result<Self, CheckpointError> {
        let misfit = |source| CheckpointError::Parameters { path: directory.to_owned(), source };
        let weights = Weights::open(directory)?;
        let config = read_config(directory)?;
        // Before anything of the size that config.json claims is allocated.
        check(&config, &weights.shapes()).map_err(misfit)?;
        let mut policy = Self::zeroed(config, device, dtype);
        let tied_head = policy.config.tied && weights.contains(HEAD);
        if tied_head && !same(&weights.tensor(HEAD)?, &weights.tensor(EMBEDDING)?) {
            return Err(misfit(ParameterError::Tied));
        }
        for (name, mut target) in policy.parameters.named() {
            let tensor = weights.finite_tensor(&name)?;
            policy.stored.insert(name, tensor.kind());
            tch::no_grad(|| target.copy_(&tensor));
        }
        Ok(policy)
    }

    /// A policy with random weights: normal with standard deviation 0.02, norms at one, biases at
    /// zero.
    #[must_use]
    pub fn random(config: ModelConfig, seed: i64, device: Device) -> Self {
        // libtorch has one random stream for all threads.
        static STREAM: Mutex<()> = Mutex::new(());
        let _turn = STREAM.lock().unwrap_or_else(PoisonError::into_inner);
        tch::manual_seed(seed);
        let policy = Self::zeroed(config, device, Dtype::F32);
        for (name, mut tensor) in policy.parameters.named() {
            if name.ends_with("norm.weight") {
                let _filled = tensor.fill_(1.0);
            } else if name.ends_with("weight") {
                let _filled = tensor.normal_(0.0, 0.02);
            }
        }
        policy
    }

    fn zeroed(config: ModelConfig, device: Device, dtype: Dtype) -> Self {
        let parameters = Parameters::new(&config, dtype.kind(), device);
        let rope = Rope::new(&config, dtype.kind(), device);
        Self {
            config,
            parameters,
            rope,
            device,
            dtype,
            stored: BTreeMap::new(),
            laid_out: RefCell::default(),
        }
    }

    /// Lays the weights out for sampling now, where a CPU does that, rather than at the first step.
    pub fn lay_out(&self) {
        self.with_network(|_| ());
    }

    /// What `work` makes of the weights as a CPU samples from them; `None` where libtorch does that.
    /// They are laid out anew when they were written to, for the threads of the calling thread.
    pub(crate) fn with_network<R>(&self, work: impl FnOnce(&mut cpu::Network) -> R) -> Option<R> {
        if self.device != Device::Cpu || !cpu::serves(self.dtype) {
            return None;
        }
        // A write to any leaf counts as one to the buffer that all of them share.
        let writes = self.parameters.flat.internal_version();
        let mut laid_out = self.laid_out.borrow_mut();
        if laid_out.as_ref().is_none_or(|laid_out| laid_out.writes != writes) {
            let threads = crate::threads() as usize;
            let network = tch::no_grad(|| {
                cpu::Network::new(&self.config, &self.parameters, self.dtype, threads)
            });
            *laid_out = Some(LaidOut { network, writes });
        }
        laid_out.as_mut().map(|laid_out| work(&mut laid_out.network))
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

    /// What the network computes in.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Empty KV cache slots for this policy, each for `capacity` tokens.
    #[must_use]
    pub fn cache(&self, slots: usize, capacity: usize) -> KvCache {
        KvCache::with_dtype(&self.config, slots, capacity, self.device, self.dtype)
    }

    /// Replaces all weights in place; nothing changes if one does not fit. Tensors may be of any
    /// float kind and on any device.
    ///
    /// # Errors
    /// A missing, unknown or misshapen tensor.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<(), ParameterError> {
        self.parameters.load(&self.config, tensors)
    }

    /// Writes `config.json` and the weights into an existing directory, each tensor in the kind it
    /// was read in: a policy that was opened and not trained is saved bit for bit.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self, directory: &Path) -> Result<(), CheckpointError> {
        let path = directory.join(CONFIG_FILE);
        let json = self.config.to_json_of(self.stored_kind(EMBEDDING));
        fs::write(&path, json).map_err(|source| CheckpointError::Write { path, source })?;
        let tensors: Vec<Stored> = self
            .named_tensors()
            .into_iter()
            .map(|(name, tensor)| Stored { kind: self.stored_kind(&name), name, tensor })
            .collect();
        write_shards(directory, &tensors)
    }

    /// Whether [`Self::save`] rounds: some tensor is saved in a narrower kind than it is trained in.
    #[must_use]
    pub fn save_rounds(&self) -> bool {
        self.dtype == Dtype::F32 && self.stored.values().any(|kind| *kind != Kind::Float)
    }

    fn stored_kind(&self, name: &str) -> Kind {
        self.stored.get(name).copied().unwrap_or(Kind::Float)
    }

    /// Checkpoint names and tensors, sorted by name; the tensors are views of the live weights.
    #[must_use]
    pub fn named_tensors(&self) -> Vec<(String, Tensor)> {
        self.parameters.named()
    }

    /// All parameters as one vector, fp32 unless the policy's dtype is another; writing to it changes
    /// the network.
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
}
