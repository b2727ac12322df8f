//! Tensor maps: what the copies of compute capability 9.0 know of a matrix.

use std::ffi::{c_int, c_uint, c_void};

use super::launch::{BoxMap, Boxed};

/// The driver's `cuTensorMapEncodeTiled`, or the emulator's.
pub type EncodeTiled = unsafe extern "C" fn(
    map: *mut c_void,
    data_type: c_int,
    rank: c_uint,
    address: *mut c_void,
    sides: *const u64,
    strides: *const u64,
    size: *const c_uint,
    steps: *const c_uint,
    interleave: c_int,
    swizzle: c_int,
    promotion: c_int,
    fill: c_int,
) -> c_int;

// As in cuda.h.
const BFLOAT16: c_int = 9;
const NO_INTERLEAVE: c_int = 0;
const SWIZZLE_128B: c_int = 3;
const PROMOTE_256B: c_int = 3;
const FILL_ZEROS: c_int = 0;

#[repr(C, align(64))]
struct Aligned(BoxMap);

impl Boxed {
    /// Encodes the matrix with the 128-byte swizzle; `None` if it cannot be copied in such boxes.
    ///
    /// # Safety
    ///
    /// The function is what its type says.
    pub unsafe fn encoded(&self, encode: EncodeTiled) -> Option<BoxMap> {
        let [rows, columns] = self.size;
        let mut map = Aligned([0; 16]);
        // SAFETY: the caller's promise; the address is encoded and not read, and lists are as long as the rank.
        let code = unsafe {
            encode(
                (&raw mut map.0).cast(),
                BFLOAT16,
                2,
                self.matrix.at as *mut c_void,
                [self.columns as u64, self.rows as u64].as_ptr(),
                [self.matrix.ld as u64 * 2].as_ptr(),
                [columns, rows].as_ptr(),
                [1, 1].as_ptr(),
                NO_INTERLEAVE,
                SWIZZLE_128B,
                PROMOTE_256B,
                FILL_ZEROS,
            )
        };
        (code == 0).then_some(map.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Operand;

    unsafe extern "C" fn arguments(
        map: *mut c_void,
        data_type: c_int,
        rank: c_uint,
        address: *mut c_void,
        sides: *const u64,
        strides: *const u64,
        size: *const c_uint,
        steps: *const c_uint,
        interleave: c_int,
        swizzle: c_int,
        promotion: c_int,
        fill: c_int,
    ) -> c_int {
        assert_eq!(map as usize % 64, 0);
        let enums = [data_type, interleave, swizzle, promotion, fill].map(|e| e as u64);
        // SAFETY: `encoded` passes a whole map, and lists of two and of one.
        unsafe {
            let lists = [
                rank.into(),
                address as u64,
                *sides,
                *sides.add(1),
                *strides,
                (*size).into(),
                (*size.add(1)).into(),
                (*steps).into(),
                (*steps.add(1)).into(),
            ];
            let all = enums.into_iter().chain(lists).chain([77, 0]);
            for (i, word) in all.enumerate() {
                map.cast::<u64>().add(i).write(word);
            }
        }
        0
    }

    #[test]
    fn a_matrix_is_described_columns_first_and_in_bytes() {
        let boxed = Boxed {
            matrix: Operand { at: 4096, ld: 584 },
            rows: 200,
            columns: 576,
            size: [128, 64],
        };
        // SAFETY: of this type.
        let words = unsafe { boxed.encoded(arguments) };
        let want = [9, 0, 3, 3, 0, 2, 4096, 576, 200, 1168, 64, 128, 1, 1, 77, 0];
        assert_eq!(words, Some(want));
    }
}
