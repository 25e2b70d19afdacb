//! Where two safetensors files differ. They are read side by side in pieces: a checkpoint may be
//! larger than memory.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use safetensors::{Dtype, tensor::Metadata};

/// Bytes compared at once; a multiple of every element's size.
const PIECE_BYTES: usize = 1 << 20;
/// Largest header; the same bound as in the `safetensors` crate.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// How two files differ.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Difference {
    /// They do not have the same tensors in the same order.
    Layout,
    /// The same tensors have other values.
    Values {
        /// The first one in the order of the file.
        tensor: String,
        /// Largest difference of two elements anywhere in the file; infinite if one of them is not
        /// a number. `None` where the elements that differ are of a type that is not compared.
        largest: Option<f64>,
    },
}

/// Compares two files; `None` if they are equal.
pub(super) fn compare(one: &Path, other: &Path) -> io::Result<Option<Difference>> {
    let (mut one, mut other) = (Tensors::open(one)?, Tensors::open(other)?);
    if one.layout != other.layout {
        return Ok(Some(Difference::Layout));
    }
    let mut found: Option<(String, Option<f64>)> = None;
    for (name, dtype, bytes) in one.layout.clone() {
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(PIECE_BYTES);
            let (ours, theirs) = (one.read(piece)?, other.read(piece)?);
            if ours != theirs {
                let largest = largest_difference(dtype, ours, theirs);
                let (_, before) = found.get_or_insert_with(|| (name.clone(), None));
                *before = [*before, largest].into_iter().flatten().reduce(f64::max);
            }
            left -= piece;
        }
    }
    Ok(found.map(|(tensor, largest)| Difference::Values { tensor, largest }))
}

/// A file whose header has been read.
struct Tensors {
    contents: BufReader<File>,
    /// Name, type and bytes of each, in the order of their values.
    layout: Vec<(String, Dtype, usize)>,
    piece: Vec<u8>,
}

impl Tensors {
    fn open(path: &Path) -> io::Result<Self> {
        let invalid = |reason: String| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {reason}", path.display()))
        };
        let mut contents = BufReader::new(File::open(path)?);
        let mut length = [0; 8];
        contents.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX {
            return Err(invalid(format!(
                "its header has {length} bytes; it is no safetensors file"
            )));
        }
        let mut header = Vec::new();
        contents.by_ref().take(length).read_to_end(&mut header)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| invalid(error.to_string()))?;
        let tensor = |name: String| {
            let info = header.info(&name)?;
            Some((name, info.dtype, info.data_offsets.1 - info.data_offsets.0))
        };
        let layout = header.offset_keys().into_iter().filter_map(tensor).collect();
        Ok(Self { contents, layout, piece: Vec::new() })
    }

    fn read(&mut self, bytes: usize) -> io::Result<&[u8]> {
        self.piece.resize(bytes, 0);
        self.contents.read_exact(&mut self.piece)?;
        Ok(&self.piece)
    }
}

fn largest_difference(dtype: Dtype, ours: &[u8], theirs: &[u8]) -> Option<f64> {
    match dtype {
        Dtype::F32 => largest(ours, theirs, |bytes| f64::from(f32::from_le_bytes(bytes))),
        // The upper half of an f32.
        Dtype::BF16 => {
            let value = |[low, high]: [u8; 2]| f64::from(f32::from_le_bytes([0, 0, low, high]));
            largest(ours, theirs, value)
        }
        _ => None,
    }
}

fn largest<const N: usize>(
    ours: &[u8],
    theirs: &[u8],
    value: impl Fn([u8; N]) -> f64,
) -> Option<f64> {
    let (ours, _) = ours.as_chunks::<N>();
    let (theirs, _) = theirs.as_chunks::<N>();
    let differing = ours.iter().zip(theirs).filter(|(one, other)| one != other);
    let distances = differing.map(|(one, other)| (value(*one) - value(*other)).abs());
    distances
        .map(|distance| if distance.is_nan() { f64::INFINITY } else { distance })
        .reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::tensor::{TensorView, serialize_to_file};

    use super::*;

    fn write(path: &Path, tensors: &[(&str, Dtype, &[u8])]) {
        let view = |(name, dtype, bytes): &(&str, Dtype, &[u8])| {
            let shape = vec![bytes.len() * 8 / dtype.bitsize()];
            let view = TensorView::new(*dtype, shape, bytes).expect("whole elements");
            ((*name).to_owned(), view.data().to_vec(), *dtype)
        };
        let owned: Vec<_> = tensors.iter().map(view).collect();
        let views = owned.iter().map(|(name, bytes, dtype)| {
            let shape = vec![bytes.len() * 8 / dtype.bitsize()];
            (name, TensorView::new(*dtype, shape, bytes).expect("whole elements"))
        });
        serialize_to_file(views, None, path).expect("written");
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn equal_files_are_equal_and_the_first_tensor_that_differs_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        // More than a piece, and it differs in the second one.
        let long = vec![1.5f32; PIECE_BYTES / 2];
        let mut changed = long.clone();
        *changed.last_mut().expect("not empty") = 1.0;
        let (long, changed) = (floats(&long), floats(&changed));
        let small = |value| floats(&[0.0, value]);
        let file = |name, long: &[u8], small: &[u8]| {
            write(&path(name), &[("a", Dtype::F32, long), ("b", Dtype::F32, small)]);
        };
        file("one", &long, &small(2.0));
        file("same", &long, &small(2.0));
        file("other", &changed, &small(2.25));
        file("late", &long, &small(f32::NAN));
        let compare = |name| compare(&path("one"), &path(name)).expect("readable");
        let values = |tensor: &str, largest| {
            Some(Difference::Values { tensor: tensor.into(), largest: Some(largest) })
        };
        assert_eq!(compare("same"), None);
        assert_eq!(compare("other"), values("a", 0.5));
        assert_eq!(compare("late"), values("b", f64::INFINITY));
    }

    #[test]
    fn types_layouts_and_files_that_are_none_are_told_apart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        // 1.0 and 2.0 in bf16; the same bytes as integers.
        write(&path("one"), &[("a", Dtype::BF16, &[0x80, 0x3f])]);
        write(&path("two"), &[("a", Dtype::BF16, &[0x00, 0x40])]);
        write(&path("u8"), &[("a", Dtype::U8, &[1, 2])]);
        write(&path("u8 changed"), &[("a", Dtype::U8, &[1, 3])]);
        let compare = |one, other| compare(&path(one), &path(other)).expect("readable");
        let values = |largest| Some(Difference::Values { tensor: "a".into(), largest });
        assert_eq!(compare("one", "two"), values(Some(1.0)));
        assert_eq!(compare("u8", "u8 changed"), values(None));
        assert_eq!(compare("one", "u8"), Some(Difference::Layout));

        fs::write(path("text"), "not at all what it should be").expect("written");
        let error = super::compare(&path("one"), &path("text")).expect_err("refused").to_string();
        assert!(error.contains("text") && error.contains("no safetensors file"), "{error}");
        let whole = fs::read(path("one")).expect("written");
        fs::write(path("short"), &whole[..whole.len() - 1]).expect("written");
        assert!(super::compare(&path("one"), &path("short")).is_err());
    }
}
