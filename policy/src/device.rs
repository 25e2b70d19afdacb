//! Where tensors live. One binary serves CPU and CUDA: it links only libtorch's CPU libraries, and
//! loads the CUDA backend when a CUDA device is asked for.

use std::ffi::CString;

use tch::Device;

/// Why a device or a dtype cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Neither "cpu" nor "cuda".
    #[error("unknown device {0:?}; use \"cpu\" or \"cuda\"")]
    Unknown(String),
    /// No dtype that a network computes in.
    #[error("unknown dtype {0:?}; use \"fp32\" (float32) or \"bf16\" (bfloat16)")]
    Dtype(String),
    /// libtorch_cuda.so is not there.
    #[error(
        "device = \"cuda\" needs libtorch_cuda.so, which could not be loaded ({0}); install a CUDA \
         build of libtorch and put its lib directory on the library path, or set device = \"cpu\""
    )]
    NoBackend(String),
    /// The backend is there, a GPU is not.
    #[error(
        "device = \"cuda\", but libtorch finds no usable GPU; check the driver, or set device = \"cpu\""
    )]
    NoGpu,
}

/// Opens "cpu" or "cuda". Call it before anything else asks libtorch about CUDA: libtorch caches
/// its first answer.
///
/// # Errors
/// A device that is unknown or absent; never a silent fall back to the CPU.
pub fn open_device(name: &str) -> Result<Device, DeviceError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" => {
            load_cuda_backend()?;
            if tch::Cuda::is_available() { Ok(Device::Cuda(0)) } else { Err(DeviceError::NoGpu) }
        }
        other => Err(DeviceError::Unknown(other.to_owned())),
    }
}

/// Sets the threads libtorch uses inside one operation that the *calling thread* starts: OpenMP keeps
/// this number per thread, and a thread that never set it takes every core.
pub fn set_threads(threads: u32) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// The threads that [`set_threads`] set for the calling thread.
#[must_use]
pub fn threads() -> u32 {
    u32::try_from(tch::get_num_threads()).unwrap_or(1)
}

fn load_cuda_backend() -> Result<(), DeviceError> {
    let name = CString::new("libtorch_cuda.so").expect("the literal holds no NUL");
    // SAFETY: `name` is a NUL-terminated string that outlives the call; the library registers its
    // backend in its initialisers and is never unloaded.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns NULL or a NUL-terminated string valid until the next dl call on this
    // thread; it is copied at once.
    let reason = unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "unknown reason".to_owned()
        } else {
            std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    Err(DeviceError::NoBackend(reason))
}
