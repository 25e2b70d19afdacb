//! Rendering the Kubernetes manifests, with whatever renderer this machine has.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::checkout::Checkout;
use crate::command;

/// Renders a kustomization folder and returns the manifests. Fails if they are none.
pub(crate) fn render(checkout: &Checkout, folder: &str) -> Result<String> {
    let (program, arguments) = renderer(checkout)?;
    let manifests =
        command::stdout(command::program(checkout, program).args(arguments).arg(folder))?;
    if !manifests.contains("kind:") {
        bail!("{folder} renders to nothing");
    }
    Ok(manifests)
}

/// A program that renders, and the arguments before the folder.
fn renderer(checkout: &Checkout) -> Result<(PathBuf, &'static [&'static str])> {
    if command::answers("kubectl", &["kustomize", "--help"]) {
        return Ok(("kubectl".into(), &["kustomize"]));
    }
    if command::answers("kustomize", &["version"]) {
        return Ok(("kustomize".into(), &["build"]));
    }
    let fetched = checkout.tools().join("kubectl/usr/bin/kubectl");
    if !fetched.is_file() && fetch(checkout).is_err() {
        bail!(
            "there is nothing to render Kubernetes manifests with: install kubectl (Debian: \
             `apt install kubernetes-client`) or kustomize"
        );
    }
    Ok((fetched, &["kustomize"]))
}

/// Unpacks Debian's kubectl into the tool folder, which needs no root.
fn fetch(checkout: &Checkout) -> Result<()> {
    let cache = checkout.tools().join("cache");
    fs::create_dir_all(&cache)?;
    let mut apt = std::process::Command::new("apt-get");
    command::stdout(apt.current_dir(&cache).args(["download", "kubernetes-client"]))?;
    for entry in fs::read_dir(&cache)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            let mut dpkg = std::process::Command::new("dpkg-deb");
            dpkg.arg("-x").arg(&package).arg(checkout.tools().join("kubectl"));
            command::stdout(&mut dpkg)?;
            fs::remove_file(package)?;
        }
    }
    Ok(())
}
