//! Calls that are ended: how soon they return, and that the engine is as good as before. And whose threads
//! compute.
//!
//! One test, so that no other thread of this process computes meanwhile.

#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use prefold::hard::LlmLingua;
use prefold::prefix::{PrefillOptions, Source};
use prefold::{CancelToken, Control, Device, Engine, Error, Request};

/// What a call may continue for on an idle machine of two cores, with room for a busy one.
const SOON: Duration = Duration::from_millis(200);

/// Processor time of this process, in seconds: other processes do not count.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = stat.rsplit(") ").next().expect("a name");
    let ticks = |i: usize| {
        after_name
            .split(' ')
            .nth(i)
            .and_then(|n| n.parse::<f64>().ok())
    };
    (ticks(11).expect("utime") + ticks(12).expect("stime")) / 100.0
}

fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        Some(name.trim().to_string())
    };
    tasks.filter_map(name).collect()
}

#[test]
fn a_call_ends_when_it_is_told_to() {
    let Some(path) = common::smollm2() else {
        eprintln!("skipped: no model");
        return;
    };
    let open = || {
        let builder = Engine::builder(&path).device(Device::Cpu).threads(1);
        builder.build().expect("it opens")
    };
    let engine = open();
    let text = include_str!("../examples/peps/pep-0418.txt").repeat(12);
    let long = Request::new([text.as_str()]).with_question("Which clock does not go back?");
    let reference = long.clone().with_mode(LlmLingua::default());
    let ids = engine.tokenize(&text, false, false).unwrap();
    let ids = &ids[..2000];
    let source = Source::ids(ids.to_vec());
    // The weights are laid out by the first pass of each kind.
    engine.score(&ids[..64], &Control::default()).unwrap();
    let short = Request::new(["One sentence. Another one. And a third."]).with_question("Which?");
    let before = engine.compress(&short).unwrap();

    let compress = |request: &Request, control: &Control| {
        let done = engine.compress_with(request, control);
        done.map(|short| short.tokens_after)
    };
    type Call<'c> = &'c dyn Fn(&Control) -> prefold::Result<usize>;
    let calls: [(&str, Call<'_>); 4] = [
        ("exact", &|control| compress(&long, control)),
        ("reference", &|control| compress(&reference, control)),
        ("score", &|control| Ok(engine.score(ids, control)?.len())),
        ("prefill", &|control| {
            let prefixes = engine.prefixes().with(control);
            let prefix = prefixes.prefill(&source, &PrefillOptions::default())?;
            Ok(prefix.shape().tokens)
        }),
    ];
    for (name, call) in calls {
        for after in [
            Duration::ZERO,
            Duration::from_millis(150),
            Duration::from_millis(400),
        ] {
            // By a deadline: what is computed after it is what counts, whatever else runs.
            let late = call(&Control::default().with_timeout(after));
            assert!(matches!(late, Err(Error::Deadline)), "{name}: {late:?}");
            // By a token, from another thread.
            let token = CancelToken::default();
            let control = Control::default().with_cancel(token.clone());
            let (cancelled, spent) = std::thread::scope(|scope| {
                let canceller = scope.spawn(|| {
                    std::thread::sleep(after);
                    let then = (Instant::now(), processor_time());
                    token.cancel();
                    then
                });
                let cancelled = call(&control);
                let (at, time) = canceller.join().unwrap();
                (cancelled, (at.elapsed(), processor_time() - time))
            });
            assert!(
                matches!(cancelled, Err(Error::Cancelled)),
                "{name}: {cancelled:?}"
            );
            eprintln!(
                "{name}: {:?}, {:.3} s of a core after it was cancelled",
                spent.0, spent.1
            );
            assert!(spent.1 <= SOON.as_secs_f64(), "{name}: {spent:?}");
        }
    }
    // The engine is as good as before.
    assert_eq!(engine.compress(&short).unwrap(), before);

    // Progress rises to the whole, stage by stage.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let to = seen.clone();
    let control = Control::default().with_progress(move |p| to.lock().unwrap().push(p));
    engine.score(ids, &control).unwrap();
    let seen = seen.lock().unwrap();
    assert!(!seen.is_empty(), "nothing was reported");
    assert!(seen.windows(2).all(|pair| pair[0].done < pair[1].done));
    let last = seen.last().unwrap();
    assert_eq!((last.done, last.total), (ids.len(), ids.len()));

    // Two engines of one thread each: two threads compute, and rayon's own pool was never started.
    let other = open();
    std::thread::scope(|scope| {
        for engine in [&engine, &other] {
            let short = &short;
            scope.spawn(move || engine.compress(short).unwrap());
        }
    });
    // Beside them the harness: its main thread and that of this test, which give a new thread their name.
    // A scope ends a moment before the kernel has its threads off the list; a pool's threads stay on it.
    let waited = Instant::now();
    let mut names = thread_names();
    while names.len() > 4 && waited.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
        names = thread_names();
    }
    let own = names.iter().filter(|name| *name == "prefold-0").count();
    assert_eq!(own, 2, "{names:?}");
    assert!(names.len() <= 4, "{names:?}");
    assert_eq!(engine.info().device, "cpu, 1 threads");
}
