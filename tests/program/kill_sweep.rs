//! Kills of a training at its system calls, chosen one by one: strace injects SIGKILL where a call begins.
//!
//! A few in every run of the tests; `PREFOLD_KILLS=1000 cargo test --test program kill_sweep` for as many. Every other
//! one hits a rename, which is where a folder could be missing or half there.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{self, TempDir};
use crate::train_cli::{ok, stderr, tiny_model, train};
use prefold::train::checkpoint::read_state;

/// All calls that a checkpoint is made of. A processor lacks those that a question mark allows it to lack.
const CALLS: &str = "%file,write,fsync,?fdatasync,?ftruncate,?pwrite64";
const RENAMES: &str = "?rename,?renameat,?renameat2";

const STEPS: usize = 8;

fn run(dir: &TempDir, out: &str) -> Command {
    let mut command = train(dir, "regen", out);
    command
        .args(["--steps", &STEPS.to_string(), "--batch", "2"])
        .args(["--save-every", "1", "--lr", "0.01", "--resume"]);
    command
}

/// The same run by strace, which writes its calls beside the folder and ends it at the `nth` of `aim`.
fn traced(dir: &TempDir, out: &str, kill: Option<(&str, usize)>) -> Command {
    let run = run(dir, out);
    let mut command = Command::new("strace");
    command
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .args(["-f", "-qq", "-o", "trace", "-e"])
        .arg(format!("trace={CALLS},{RENAMES}"));
    if let Some((aim, nth)) = kill {
        command.args(["-e", &format!("inject={aim}:signal=KILL:when={nth}")]);
    }
    command.arg(run.get_program()).args(run.get_args());
    command
}

/// How many calls the busiest thread made, and how many of them were renames that gave a folder its name.
fn calls(dir: &TempDir) -> (usize, usize) {
    let trace = std::fs::read_to_string(dir.path().join("trace")).unwrap();
    let mut threads = std::collections::HashMap::<&str, usize>::new();
    let mut renames = 0;
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap_or((line, ""));
        *threads.entry(thread).or_default() += 1;
        let rename = call.trim_start().starts_with("rename") || call.contains("<... rename");
        renames += usize::from(rename && call.ends_with("= 0"));
    }
    (threads.into_values().max().unwrap_or(0), renames)
}

fn trained(folder: &Path) -> Vec<Vec<u8>> {
    let names = ["adapter_model", "memory_embeddings", "optimizer"];
    names
        .map(|name| std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap())
        .into()
}

#[test]
fn a_kill_at_any_call_leaves_a_whole_run() {
    let works = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    if !works.is_ok_and(|status| status.success()) {
        common::say("skipped: kills at chosen calls need strace, and the right to trace");
        return;
    }
    let kills = common::number("PREFOLD_KILLS", 16) as usize;
    let dir = tiny_model();
    ok(&mut traced(&dir, "whole", None));
    let (all, renames) = calls(&dir);
    let trace = std::fs::read_to_string(dir.path().join("trace")).unwrap();
    if !trace.contains("RENAME_EXCHANGE) = 0") {
        common::say("skipped: this file system does not exchange folders in one step");
        return;
    }
    assert!(renames >= STEPS, "{renames} renames");
    let whole = trained(&dir.path().join("whole"));
    let folder = dir.path().join("killed");

    let (mut pass, mut killed, mut saved) = (0, 0, 0);
    while killed < kills {
        let _ = std::fs::remove_dir_all(&folder);
        let _ = std::fs::remove_file(dir.path().join("killed.log.jsonl"));
        // Twice: also where a killed run is taken up.
        for again in 0..2 {
            // All in turn, far apart at first.
            let aim = match pass % 2 {
                0 => (RENAMES, 1 + (pass / 2 + again) % renames),
                _ => (CALLS, 1 + (pass + again) * 89 % all),
            };
            let before = read_state(&folder).ok().map(|state| state.step);
            let output = traced(&dir, "killed", Some(aim)).output().unwrap();
            // strace ends as what it ran did.
            let hit = output.status.signal() == Some(9);
            assert!(
                hit || output.status.success(),
                "{aim:?}: {}",
                stderr(&output)
            );
            killed += usize::from(hit);
            let (_, renamed) = calls(&dir);
            let after = read_state(&folder).ok().map(|state| state.step);
            // Once it has its name it is there at any time, and never older.
            if renamed > 0 || before.is_some() {
                assert!(
                    after.is_some() && after >= before,
                    "{aim:?}: {before:?}, {after:?}, {}",
                    stderr(&output)
                );
                saved += 1;
            }
        }
        ok(&mut run(&dir, "killed"));
        assert!(trained(&folder) == whole, "pass {pass}: another adapter");
        let left = std::fs::read_dir(dir.path()).unwrap();
        let left: Vec<_> = left
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(left.is_empty(), "pass {pass}: {left:?} is left");
        pass += 1;
        assert!(pass < 10 + kills * 4, "{killed} kills in {pass} passes");
    }
    common::say(&format!(
        "{killed} kills in {pass} passes; {saved} times a checkpoint was there: each whole, each continued to the same adapter"
    ));
}
