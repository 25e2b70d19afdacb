//! The checkout this command works on, and the places in it that other modules name.

use std::env;
use std::path::{Path, PathBuf};

/// Root folder of the repository.
#[derive(Clone, Debug)]
pub(crate) struct Checkout {
    root: PathBuf,
}

impl Checkout {
    /// The checkout that holds this crate. Cargo names the crate's folder when it runs the program;
    /// a program started by hand falls back to where it was built.
    pub(crate) fn find() -> Self {
        let own = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        Self::at(own.parent().unwrap_or(Path::new(".")))
    }

    /// The checkout at `root`.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Root folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where `setup` puts what it fetches. Ignored by git.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join(".tools")
    }

    /// A program of the workspace, as the dev profile builds it.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        self.root.join(target).join("debug").join(name)
    }

    /// Directory of a run.
    pub(crate) fn run_directory(&self, name: &str) -> PathBuf {
        self.root.join("runs").join(name)
    }
}
