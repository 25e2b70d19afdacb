//! Which registers the processor has, and functions compiled for each kind of them.

/// Sets of instructions that kernels are compiled for, found out at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// What every processor of the architecture has.
    Baseline,
    /// Eight fp32 in a register, fused multiply and add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Sixteen.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A loop over numbers that the compiler turns into whatever registers there are.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// `FUSED`: [`f32::mul_add`] is one instruction. Implementations are `#[inline(always)]`.
    fn run<const FUSED: bool>(self) -> Self::Output;
}

impl Isa {
    /// The widest registers of this processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            return if wide { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Baseline
    }

    /// Whether products of bf16 numbers are an instruction.
    pub(crate) fn has_bf16() -> bool {
        #[cfg(target_arch = "x86_64")]
        if Self::detect() == Self::Avx512 {
            return is_x86_feature_detected!("avx512bf16");
        }
        false
    }
}

/// Runs a kernel as compiled for the widest registers of this processor.
#[inline]
pub(crate) fn vectorised<K: Kernel>(kernel: K) -> K::Output {
    match Isa::detect() {
        // SAFETY: the processor has these instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { with_avx512(kernel) },
        // SAFETY: the same.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { with_avx2(kernel) },
        Isa::Baseline => kernel.run::<false>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

/// `sum + one * other`.
#[inline(always)]
pub(crate) fn add_product<const FUSED: bool>(sum: f32, one: f32, other: f32) -> f32 {
    // Unfused `mul_add` is a call.
    if FUSED { one.mul_add(other, sum) } else { sum + one * other }
}
