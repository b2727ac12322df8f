//! The case table on kernels: executed by the CPU in one order with copies early and in another with
//! copies late, and on a CUDA device where there is one.

use crate::cases::{distance, small};
use crate::common::device::backends;
use crate::common::emu::SCHEDULES;
use prefold::gpu::Precision;

#[test]
fn every_case_is_right_by_kernels() {
    for precision in [Precision::F32, Precision::Bf16] {
        let bf16 = precision == Precision::Bf16;
        backends(precision, &SCHEDULES[2..], |gpu, at| {
            for case in small() {
                let host = case.host();
                let mut placed = case.place(&gpu, &host).unwrap();
                case.run(&gpu, &mut placed).unwrap();
                let got = case.read(&gpu, &placed).unwrap();
                let far = distance(&got, &case.want(&host), case.tolerance(bf16));
                assert!(far <= 1.0, "{case:?}, {at}: {far} too far");
            }
        });
    }
}
