//! Products of tiles with the AMX instructions of x86-64 processors (Intel's architecture extensions reference, chapter 3):
//! 16 by 16 outputs over 32 inputs in one instruction, `bf16` in, `f32` out. It is given whole tiles and
//! never decides what to multiply.
#![expect(unsafe_code, reason = "tile instructions are reached by inline assembly only; each use says why it is sound")]

use std::arch::asm;
use std::sync::OnceLock;

use half::bf16;

use super::band::{Pair, Start};
use super::tiles::SIDE;

/// Whether this processor multiplies tiles of `bf16` and the kernel lets this process do so.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        let (bf16, tiles) = (features & 1 << 22 != 0, features & 1 << 24 != 0);
        bf16 && tiles && std::is_x86_feature_detected!("avx512f") && permitted()
    })
}

/// Asks Linux for the state of tile registers, which it saves only for processes that asked.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Shapes of the eight tile registers.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    const NONE: Self = Self { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };

    /// All eight registers hold 16 rows of 64 bytes.
    fn whole() -> Self {
        let mut shapes = Self { palette: 1, ..Self::NONE };
        shapes.row_bytes[..8].fill(64);
        shapes.rows[..8].fill(16);
        shapes
    }
}

/// This thread's tile registers, set up for [`Session::block`] while it lives. What they were set up for before is put back,
/// because candle sets up each thread once for kernels of its own.
pub(crate) struct Session {
    before: Box<Shapes>,
}

impl Session {
    /// `None` where tiles are not [`available`].
    pub(crate) fn begin() -> Option<Self> {
        if !available() {
            return None;
        }
        let mut before = Box::new(Shapes::NONE);
        let whole = Shapes::whole();
        // SAFETY: `available` says that the processor has the instructions and the process may use them; both operands are
        // 64 bytes that live through the instruction.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &raw mut *before, options(nostack));
            asm!("ldtilecfg [{}]", in(reg) &raw const whole, options(nostack));
        }
        Some(Self { before })
    }

    /// Adds to `out`, or sets it where it starts from zero, the product of two lines of rows with two lines of outputs, summed over
    /// `pairs` of them.
    ///
    /// # Safety
    /// `out` is valid for reads and writes of `BLOCK` rows of `BLOCK` numbers, `stride` numbers apart, and no other thread
    /// touches these.
    #[inline]
    pub(super) unsafe fn block(&self, pairs: &[Pair<'_>], out: *mut f32, stride: usize, start: Start) {
        // SAFETY: by the contract of this function, row 16 is inside the block.
        let lower = unsafe { out.add(SIDE * stride) };
        let stride = stride * size_of::<f32>();
        // SAFETY: a session is open, so the registers are set up; loads and stores of `out` stay inside the block.
        unsafe {
            if start == Start::Zero {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            } else {
                asm!(
                    "tileloadd tmm0, [{upper} + {stride}]",
                    "tileloadd tmm1, [{upper} + {stride} + 64]",
                    "tileloadd tmm2, [{lower} + {stride}]",
                    "tileloadd tmm3, [{lower} + {stride} + 64]",
                    upper = in(reg) out, lower = in(reg) lower, stride = in(reg) stride, options(nostack, readonly)
                );
            }
            for pair in pairs {
                match (pair.rows.low, pair.outputs.low) {
                    (None, _) => one(pair),
                    (Some(low), None) => two(pair, low),
                    (Some(low), Some(rest)) => three(pair, low, rest),
                }
            }
            asm!(
                "tilestored [{upper} + {stride}], tmm0",
                "tilestored [{upper} + {stride} + 64], tmm1",
                "tilestored [{lower} + {stride}], tmm2",
                "tilestored [{lower} + {stride} + 64], tmm3",
                upper = in(reg) out, lower = in(reg) lower, stride = in(reg) stride, options(nostack)
            );
        }
    }
}

/// Adds the product of whole or rounded numbers to the sums in registers 0 to 3.
///
/// # Safety
/// A session is open.
#[inline]
unsafe fn one(pair: &Pair<'_>) {
    let tiles = pair.tiles();
    if tiles == 0 {
        return;
    }
    let (rows, outputs) = (pair.rows.high, pair.outputs.high);
    // SAFETY: the loop reads `tiles` whole tiles of slices that `Pair::tiles` found to be that long.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{upper} + {row}]",
            "tileloadd tmm6, [{left} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {left}, 1024",
            "add {right}, 1024",
            "dec {tiles}",
            "jnz 2b",
            upper = inout(reg) rows[0].as_ptr() => _,
            lower = inout(reg) rows[1].as_ptr() => _,
            left = inout(reg) outputs[0].as_ptr() => _,
            right = inout(reg) outputs[1].as_ptr() => _,
            tiles = inout(reg) tiles => _,
            row = in(reg) 64usize,
            options(nostack, readonly)
        );
    }
}

/// As [`one`], where rows are the sum of two parts: what is loaded of the outputs meets both.
///
/// # Safety
/// A session is open.
#[inline]
unsafe fn two(pair: &Pair<'_>, low: [&[bf16]; 2]) {
    let tiles = pair.tiles();
    if tiles == 0 {
        return;
    }
    let (rows, outputs) = (pair.rows.high, pair.outputs.high);
    // SAFETY: as in `one`.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{upper_low} + {row}]",
            "tileloadd tmm6, [{left} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower_low} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{upper} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {upper_low}, 1024",
            "add {lower_low}, 1024",
            "add {left}, 1024",
            "add {right}, 1024",
            "dec {tiles}",
            "jnz 2b",
            upper = inout(reg) rows[0].as_ptr() => _,
            lower = inout(reg) rows[1].as_ptr() => _,
            upper_low = inout(reg) low[0].as_ptr() => _,
            lower_low = inout(reg) low[1].as_ptr() => _,
            left = inout(reg) outputs[0].as_ptr() => _,
            right = inout(reg) outputs[1].as_ptr() => _,
            tiles = inout(reg) tiles => _,
            row = in(reg) 64usize,
            options(nostack, readonly)
        );
    }
}

/// As [`one`], where both sides are sums of two parts; the product of the small ones is left out. Eight tiles are loaded
/// for twelve products.
///
/// # Safety
/// A session is open.
#[inline]
unsafe fn three(pair: &Pair<'_>, low: [&[bf16]; 2], rest: [&[bf16]; 2]) {
    let tiles = pair.tiles();
    if tiles == 0 {
        return;
    }
    let (rows, outputs) = (pair.rows.high, pair.outputs.high);
    // SAFETY: as in `one`.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{upper} + {row}]",
            "tileloadd tmm6, [{left_low} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right_low} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{left} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm4, [{upper_low} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower_low} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {upper_low}, 1024",
            "add {lower_low}, 1024",
            "add {left}, 1024",
            "add {right}, 1024",
            "add {left_low}, 1024",
            "add {right_low}, 1024",
            "dec {tiles}",
            "jnz 2b",
            upper = inout(reg) rows[0].as_ptr() => _,
            lower = inout(reg) rows[1].as_ptr() => _,
            upper_low = inout(reg) low[0].as_ptr() => _,
            lower_low = inout(reg) low[1].as_ptr() => _,
            left = inout(reg) outputs[0].as_ptr() => _,
            right = inout(reg) outputs[1].as_ptr() => _,
            left_low = inout(reg) rest[0].as_ptr() => _,
            right_low = inout(reg) rest[1].as_ptr() => _,
            tiles = inout(reg) tiles => _,
            row = in(reg) 64usize,
            options(nostack, readonly)
        );
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: as in `begin`; a configuration of palette 0 frees the registers.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const *self.before, options(nostack)) }
    }
}
