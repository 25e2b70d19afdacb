//! Python environments: of the programs we compare ourselves with, and of those that read our files
//! in tests. Ballast itself runs no Python.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::checkout::Checkout;
use crate::command;

/// A Python environment of its own under `.tools`; peers disagree about the version of torch.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Folder under `.tools`.
    folder: &'static str,
    /// Pinned packages, relative to the checkout.
    requirements: &'static str,
    /// How pip is to install them.
    flags: &'static [&'static str],
}

/// transformers on torch.
pub(crate) const TRANSFORMERS: Peers =
    Peers { folder: "python", requirements: "bench/requirements.txt", flags: &[] };

/// vLLM's build for CPUs. It asks for a torch that only its own index has; the pinned list is
/// complete, and works.
pub(crate) const VLLM: Peers =
    Peers { folder: "vllm", requirements: "bench/requirements-vllm.txt", flags: &["--no-deps"] };

/// llama.cpp, compiled for this machine.
pub(crate) const LLAMA_CPP: Peers =
    Peers { folder: "llama", requirements: "bench/requirements-llama.txt", flags: &[] };

/// What opens the Parquet files of a run in coordinator/tests/compaction.
pub(crate) const DATASET: Peers = Peers {
    folder: "dataset",
    requirements: "coordinator/tests/compaction/requirements.txt",
    flags: &[],
};

/// Oldest Python for which they are all published.
const OLDEST: &str = "import sys; sys.exit(sys.version_info < (3, 10))";

/// A `python` that has the packages, to be given a script.
pub(crate) fn with(checkout: &Checkout, peers: &Peers) -> Result<Command> {
    let mut python = command::program(checkout, environment(checkout, peers)?);
    // Checkpoints are local; without this transformers asks the network about them.
    python.env("HF_HUB_OFFLINE", "1");
    Ok(python)
}

/// The environment's interpreter; made and filled at the first call.
pub(crate) fn environment(checkout: &Checkout, peers: &Peers) -> Result<PathBuf> {
    let folder = checkout.tools().join(peers.folder);
    let python = folder.join("bin/python");
    let stamp = folder.join(".stamp");
    let wanted = fs::read_to_string(checkout.root().join(peers.requirements))?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    ensure!(
        command::answers("python3", &["-c", OLDEST]),
        "what {} lists needs `python3` on the PATH to be Python 3.10 or newer",
        peers.requirements
    );
    println!("installing what {} lists into {}", peers.requirements, folder.display());
    let mut venv = Command::new("python3");
    command::stdout(venv.args(["-m", "venv"]).arg(&folder)).context(
        "cannot make a Python environment (Debian and Ubuntu: `apt install python3-venv`)",
    )?;
    let mut pip = command::program(checkout, &python);
    pip.args(["-m", "pip", "install", "--quiet", "--requirement", peers.requirements]);
    command::run(pip.args(peers.flags))
        .with_context(|| format!("cannot install what {} lists", peers.requirements))?;
    fs::write(stamp, wanted)?;
    Ok(python)
}
