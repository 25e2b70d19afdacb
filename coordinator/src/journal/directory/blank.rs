//! Files that are being made.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

use rustix::fs::FallocateFlags;

use super::{StorageError, refusal::unavailable, remove};

/// Zeros that are written at once where the file system cannot preallocate.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A file under `new/`. That name goes when it is dropped; the file stays if it was linked.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Room in it.
    pub(super) bytes: u64,
}

impl Blank {
    /// Makes one with room for `bytes`. Here a full disk shows.
    pub(super) fn create(path: PathBuf, bytes: u64) -> Result<Self, StorageError> {
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let blank = Self { file: file.map_err(unavailable("create", &path))?, path, bytes };
        blank.reserve().map_err(unavailable("reserve room in", &blank.path))?;
        Ok(blank)
    }

    fn reserve(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.fill()?,
            reserved => reserved?,
        }
        self.file.sync_all()
    }

    fn fill(&self) -> io::Result<()> {
        let mut offset = 0;
        while offset < self.bytes {
            let step = (self.bytes - offset).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..step as usize], offset)?;
            offset += step;
        }
        Ok(())
    }
}

impl Drop for Blank {
    fn drop(&mut self) {
        remove(&self.path).ok();
    }
}
