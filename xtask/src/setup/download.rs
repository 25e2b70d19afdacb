//! One file from a URL to disk: with a progress bar, resumed where it was cut off, and only ever
//! under its final name if its hash is right.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

/// Attempts in a row that bring not one byte, after which the download gives up. An attempt that
/// brings some starts the count again, so a bad line finishes as long as it moves.
const FRUITLESS_ATTEMPTS_MAX: u32 = 4;

/// Wait before the second attempt; doubles with every fruitless one.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// A connection that stays silent this long counts as cut.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// What the file must be.
#[derive(Debug)]
pub(super) struct Pin {
    /// SHA-256, hexadecimal.
    pub(super) sha256: &'static str,
    /// Size.
    pub(super) bytes: u64,
}

/// Where files are downloaded from: http(s) and file URLs.
#[derive(Debug)]
pub(super) struct Source {
    agent: Agent,
    retry_delay: Duration,
}

impl Source {
    /// A source that trusts the certificates of this machine and uses the environment's proxy.
    pub(super) fn new() -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(SILENCE_MAX))
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .build();
        Self { agent: Agent::new_with_config(config), retry_delay: RETRY_DELAY }
    }

    /// Downloads `url` to `place` by way of `<place>.part`.
    pub(super) fn fetch(&self, url: &str, place: &Path, pin: &Pin) -> Result<()> {
        let part = part_of(place);
        let bar = progress_bar(place, pin.bytes);
        if let Some(path) = url.strip_prefix("file://") {
            fs::copy(path, &part).with_context(|| format!("cannot copy {path}"))?;
        } else {
            self.complete(url, &part, pin, &bar)?;
        }
        bar.finish_and_clear();
        if sha256(&part)? != pin.sha256 {
            fs::remove_file(&part)?;
            bail!(
                "{url} is not the file that is pinned (its SHA-256 differs): the index or a proxy \
                 altered it; set PIP_INDEX_URL to another mirror and run this again"
            );
        }
        fs::rename(&part, place)?;
        Ok(())
    }

    /// Asks for the rest of the file until it is there.
    fn complete(&self, url: &str, part: &Path, pin: &Pin, bar: &ProgressBar) -> Result<()> {
        let mut fruitless = 0;
        loop {
            let before = length(part);
            if before == pin.bytes {
                return Ok(());
            }
            let failure = match self.attempt(url, part, before, bar) {
                Ok(()) if length(part) >= pin.bytes => return Ok(()),
                Ok(()) => anyhow!("the connection closed early"),
                Err(error) if !retryable(&error) => return Err(name_full_disk(error, part)),
                Err(error) => error,
            };
            fruitless = if length(part) > before { 0 } else { fruitless + 1 };
            if fruitless == FRUITLESS_ATTEMPTS_MAX {
                return Err(failure.context(format!(
                    "cannot download {url}: check the network and proxy, then run this again (it \
                     goes on at byte {})",
                    length(part)
                )));
            }
            bar.set_message("resuming");
            thread::sleep(self.retry_delay * 2_u32.pow(fruitless));
        }
    }

    /// Appends what one connection delivers after the first `offset` bytes.
    fn attempt(&self, url: &str, part: &Path, offset: u64, bar: &ProgressBar) -> Result<()> {
        let mut request = self.agent.get(url);
        if offset > 0 {
            request = request.header("Range", format!("bytes={offset}-"));
        }
        let response = request.call()?;
        let append = match response.status().as_u16() {
            200 => false,
            206 => true,
            // The part is longer than the file: it is of something else.
            416 => {
                fs::remove_file(part)?;
                bail!("the server has less than what was already fetched");
            }
            status => bail!("the server answered {status}"),
        };
        let mut file = OpenOptions::new()
            .create(true)
            .append(append)
            .write(true)
            .truncate(!append)
            .open(part)?;
        bar.set_position(if append { offset } else { 0 });
        bar.reset_eta();
        bar.set_message("");
        copy(&mut response.into_body().into_reader(), &mut file, bar)
    }
}

/// A fault of this machine's disk, as opposed to one of the network, which may pass.
#[derive(Debug)]
struct DiskFault(io::Error);

impl std::fmt::Display for DiskFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write the download")
    }
}

impl std::error::Error for DiskFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

fn copy(from: &mut impl Read, to: &mut File, bar: &ProgressBar) -> Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            read => {
                to.write_all(&chunk[..read]).map_err(DiskFault)?;
                bar.inc(read as u64);
            }
        }
    }
}

fn retryable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<DiskFault>().is_none()
}

fn name_full_disk(error: anyhow::Error, part: &Path) -> anyhow::Error {
    let full = error
        .downcast_ref::<DiskFault>()
        .is_some_and(|DiskFault(cause)| cause.kind() == ErrorKind::StorageFull);
    let place = part.display();
    if full {
        error.context(format!("the disk that holds {place} is full: free space and run this again"))
    } else {
        error.context(format!("cannot write {place}"))
    }
}

fn part_of(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn length(part: &Path) -> u64 {
    part.metadata().map_or(0, |file| file.len())
}

/// SHA-256 of a file, hexadecimal.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => hash.update(&chunk[..read]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A bar on a terminal; elsewhere (a CI log) one line.
fn progress_bar(place: &Path, bytes: u64) -> ProgressBar {
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let package = name.split('-').next().unwrap_or(&name).to_owned();
    let bar = ProgressBar::new(bytes);
    if bar.is_hidden() {
        println!("setup: downloading {name} ({:.1} MB)", bytes as f64 / 1e6);
    }
    let template =
        "{prefix:20} {wide_bar} {bytes:>10}/{total_bytes} {bytes_per_sec:>12} eta {eta} {msg}";
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    bar.with_style(style.progress_chars("##-")).with_prefix(package)
}

#[cfg(test)]
mod tests;
