//! Numbers as tensors hold them: fp32, or bfloat16 as its sixteen bits.

use std::slice;

use tch::{Device, Kind, Tensor};

/// A number of a weight matrix or of the KV cache.
pub(crate) trait Element: Copy + Send + Sync {
    /// libtorch's name of it.
    const KIND: Kind;
    /// As fp32, exactly.
    fn widen(self) -> f32;
    /// The nearest one; ties go to the even one.
    fn narrow(number: f32) -> Self;
    /// Numbers as fp32: as they are, or in `scratch`.
    fn widened<'a>(numbers: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
}

/// A bfloat16: the upper half of an fp32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

impl Element for f32 {
    const KIND: Kind = Kind::Float;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        number
    }

    #[inline(always)]
    fn widened<'a>(numbers: &'a [Self], _scratch: &'a mut Vec<f32>) -> &'a [f32] {
        numbers
    }
}

impl Element for Bf16 {
    const KIND: Kind = Kind::BFloat16;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        let bits = number.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // Rounding could carry a NaN over into an infinity.
        Self(if number.is_nan() { 0x7fc0 } else { rounded as u16 })
    }

    #[inline(always)]
    fn widened<'a>(numbers: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(numbers.len(), 0.0);
        scratch.iter_mut().zip(numbers).for_each(|(wide, number)| *wide = number.widen());
        scratch
    }
}

/// The numbers of a tensor.
///
/// # Panics
/// A tensor that is not contiguous, on a CPU and of this kind: a bug.
pub(crate) fn elements<E: Element>(tensor: &Tensor) -> &[E] {
    check::<E>(tensor);
    // SAFETY: the tensor's memory holds `numel` numbers of this type, as checked, for as long as the
    // tensor is borrowed. libtorch writes to it only when it is called on this tensor or a view of
    // it, and no caller does that while it holds the slice.
    unsafe { slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The same, to write to.
///
/// # Panics
/// As [`elements`].
pub(crate) fn elements_mut<E: Element>(tensor: &mut Tensor) -> &mut [E] {
    check::<E>(tensor);
    // SAFETY: as in `elements`; and whoever holds the only mutable borrow of a tensor of the KV
    // cache, or one it has just made, holds no other slice of its memory.
    unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

fn check<E: Element>(tensor: &Tensor) {
    let plain = tensor.device() == Device::Cpu && tensor.kind() == E::KIND;
    assert!(plain && tensor.is_contiguous(), "{:?} is no plain table", tensor.kind());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_libtorch() {
        let mut numbers: Vec<f32> = (0..4000u32).map(|at| f32::from_bits(at * 1_073_217)).collect();
        numbers.extend([0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.003_906_3]);
        numbers.retain(|number| !number.is_nan());
        let expected = Tensor::from_slice(&numbers).to_kind(Kind::BFloat16);
        let ours: Vec<Bf16> = numbers.iter().map(|number| Bf16::narrow(*number)).collect();
        assert_eq!(ours, elements::<Bf16>(&expected));
        assert!(Bf16::narrow(f32::NAN).widen().is_nan());
        assert!(Bf16::narrow(f32::from_bits(0x7fff_ffff)).widen().is_nan());
    }
}
