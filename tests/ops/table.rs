//! The case table on the CPU: each case on each instruction set beside the oracle.

use crate::cases::{distance, small};
use prefold::cpu::Cpu;

#[test]
fn every_case_is_right_on_every_instruction_set() {
    let cpus = Cpu::each_instruction_set();
    for case in small() {
        let host = case.host();
        let want = case.want(&host);
        assert!(want.iter().all(|want| !want.values.is_empty()), "{case:?}");
        for cpu in &cpus {
            let mut placed = case.place(cpu, &host).unwrap();
            case.run(cpu, &mut placed).unwrap();
            let got = case.read(cpu, &placed).unwrap();
            let far = distance(&got, &want, case.tolerance(false));
            assert!(far <= 1.0, "{case:?} by {}: {far} too far", cpu.describe());
        }
    }
}

/// A wrong element would be found: the table's own check.
#[test]
fn a_wrong_element_is_far() {
    for case in small() {
        let host = case.host();
        let want = case.want(&host);
        let cpu = Cpu::new();
        let mut placed = case.place(&cpu, &host).unwrap();
        case.run(&cpu, &mut placed).unwrap();
        let right = case.read(&cpu, &placed).unwrap();
        for part in &want {
            for wrong in [f32::NAN, 1e3] {
                let mut got = right.clone();
                got[part.output][part.at[part.at.len() / 2]] = wrong;
                assert!(
                    distance(&got, &want, case.tolerance(true)) > 1.0,
                    "{case:?}"
                );
            }
        }
    }
}

/// The last rows alone give what they give among the others.
#[test]
fn a_tail_is_the_end_of_the_whole() {
    let cpu = Cpu::new();
    let mut seen = 0;
    for case in small() {
        let host = case.host();
        let few = case.rows.min(4);
        let Some((tail, of_tail)) = case.tail(&host, few) else {
            continue;
        };
        seen += 1;
        let run = |case: &crate::cases::Case, host| {
            let mut placed = case.place(&cpu, host).unwrap();
            case.run(&cpu, &mut placed).unwrap();
            case.read(&cpu, &placed).unwrap()
        };
        for (whole, tail) in run(&case, &host).iter().zip(run(&tail, &of_tail)) {
            for (a, b) in whole[whole.len() - tail.len()..].iter().zip(&tail) {
                assert!((a - b).abs() <= 1e-4, "{case:?}: {a}, not {b}");
            }
        }
    }
    assert!(seen > 10);
}
