//! Is there room? Asked before a download, because half a gigabyte later is too late.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command;

/// Fails if the disk that holds `folder` has fewer than `needed` bytes free.
pub(super) fn check(folder: &Path, needed: u64) -> Result<()> {
    // POSIX's df, since the standard library cannot ask. Where it is missing, the write itself
    // reports a full disk.
    let mut df = std::process::Command::new("df");
    let Ok(report) = command::stdout(df.arg("-Pk").arg(folder)) else { return Ok(()) };
    let Some(free) = free_bytes(&report) else { return Ok(()) };
    if free < needed {
        bail!(
            "the disk that holds {} has {} free, and the tools with a first build need {}: free \
             some space, or move the checkout to a larger disk",
            folder.display(),
            gigabytes(free),
            gigabytes(needed)
        );
    }
    Ok(())
}

/// Free bytes in the output of `df -Pk`: second line, fourth column, kibibytes.
fn free_bytes(report: &str) -> Option<u64> {
    let kibibytes: u64 = report.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_bytes_are_the_available_column() {
        let report = "Filesystem 1024-blocks  Used Available Capacity Mounted on\n\
                      /dev/vda   263174212 13000  82837504      14% /\n";
        assert_eq!(free_bytes(report), Some(82_837_504 * 1024));
        assert_eq!(free_bytes("df: no such file\n"), None);
    }
}
