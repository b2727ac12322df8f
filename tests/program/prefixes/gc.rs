//! What `prefold prefixes gc` removes, and what it does not.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use super::{World, age, length, lines, outcome};

#[test]
fn old_ones_are_removed() {
    let world = World::new();
    let [a, b, c] = world.aged([40, 20, 10]);
    let gc = |more: &[&str]| world.prefixes(&[&["gc"], more].concat());
    let everything = gc(&["--older-than", "41d"]);
    assert_eq!(everything.code, Some(0), "{}", everything.err);
    assert_eq!(everything.out, "");
    let (out, dry) = gc(&["--older-than", "30d", "--dry-run"]).noted();
    assert_eq!(out, lines(&[&a]));
    assert_eq!(world.files().len(), 3);
    let (out, real) = gc(&["--older-than", "30d"]).noted();
    assert_eq!(out, lines(&[&a]));
    assert_ne!(dry, real, "what is only tried is called so");
    assert_eq!(world.listed(), [c.as_str(), b.as_str()]);
    // In hours.
    let (out, _) = gc(&["--older-than", "300h"]).noted();
    assert_eq!(out, lines(&[&b]));
    assert_eq!(world.listed(), [c]);
}

#[test]
fn the_newest_are_kept() {
    let world = World::new();
    let [a, b, c] = world.aged([1, 3, 2]);
    let gc = |keep: u64| world.prefixes(&["gc", "--keep", &keep.to_string()]);
    let sizes = [&a, &b, &c].map(|name| length(&world.kept(name)));
    let all: u64 = sizes.iter().sum();
    let nothing = gc(all);
    assert_eq!((nothing.code, nothing.out.as_str()), (Some(0), ""));
    let (out, _) = gc(all - 1).noted();
    assert_eq!(out, lines(&[&b]));
    let (out, _) = gc(sizes[0]).noted();
    assert_eq!(out, lines(&[&c]));
    assert_eq!(world.listed(), [a.as_str()]);
    let (out, _) = gc(1).noted();
    assert_eq!(out, lines(&[&a]));
    assert_eq!(world.files(), BTreeSet::new());
}

#[test]
fn one_models_are_removed() {
    let world = World::new();
    let [a, b] = world.aged([5, 1]);
    let other = world.prefill("other", "qwen2", "[3,1,2]", &[]);
    world.prefixes(&["push", "other"]).quiet();
    age(&world.kept(&other), 9);
    let fingerprint = a.split_once('/').unwrap().0;
    // With another condition it says among which.
    let some = ["gc", "--older-than", "3d", "--fingerprint", fingerprint];
    let (out, _) = world.prefixes(&some).noted();
    assert_eq!(out, lines(&[&a]));
    let (out, _) = world
        .prefixes(&["gc", "--fingerprint", fingerprint])
        .noted();
    assert_eq!(out, lines(&[&b]));
    assert_eq!(world.listed(), [other]);
}

/// By two at once, as by timers on two machines: what the other removed has gone as well.
#[test]
fn two_processes_remove_the_same_files() {
    let world = World::new();
    let names = [world.small("a"), world.small("b"), world.small("c")];
    for _ in 0..10 {
        world.prefixes(&["push", "a", "b", "c"]).quiet();
        let started = [(); 2].map(|()| {
            world
                .command(&["prefixes", "gc", "--keep", "1", "--store", "store"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let mut gone = BTreeSet::new();
        for process in started {
            let (out, _) = outcome(process.wait_with_output().unwrap()).noted();
            gone.extend(out.lines().map(String::from));
        }
        assert_eq!(gone, BTreeSet::from(names.clone()));
        assert_eq!(world.files(), BTreeSet::new());
    }
}

/// In the local cache an age is that of the last use.
#[test]
fn what_is_used_stays_in_the_cache() {
    let world = World::new();
    let name = world.small("a");
    let prefixes = |more: &[&str]| world.run(&[&["prefixes"], more].concat());
    prefixes(&["push", "a"]).quiet();
    let kept = world.path(&format!("cache/prefixes/{name}.safetensors"));
    age(&kept, 40);
    let gc = ["gc", "--older-than", "30d", "--dry-run"];
    assert_eq!(prefixes(&gc).noted().0, lines(&[&name]));
    prefixes(&["pull", &name]).quiet();
    assert_eq!(prefixes(&gc).noted().0, "");
}

#[test]
fn gc_wants_to_know_what() {
    let world = World::new();
    world.aged([400]);
    let gc = |more: &[&str]| world.prefixes(&[&["gc"], more].concat());
    gc(&[]).bad(2, &["--older-than", "--keep", "--fingerprint"]);
    gc(&["--dry-run"]).bad(2, &["--older-than", "--keep", "--fingerprint"]);
    for wrong in [
        "",
        "d",
        "30",
        "-1d",
        "30 parsecs",
        "1e99d",
        "99999999999999999999d",
        "NaNd",
    ] {
        gc(&[&format!("--older-than={wrong}")]).bad(2, &["--older-than"]);
    }
    for wrong in [
        "",
        "G",
        "-1",
        "10 elephants",
        "99999999999999999999G",
        "NaN",
    ] {
        gc(&[&format!("--keep={wrong}")]).bad(2, &["--keep"]);
    }
    for wrong in ["", "abc", "..", &"g".repeat(64)] {
        let given = gc(&[&format!("--fingerprint={wrong}")]);
        assert!(matches!(given.code, Some(1 | 2)), "{wrong}: {}", given.out);
    }
    assert_eq!(world.files().len(), 1);
}

/// A store pointed at the wrong folder deletes nothing.
#[test]
fn files_of_other_names_are_not_touched() {
    let world = World::new();
    let [a] = world.aged([100]);
    let fingerprint = a.split_once('/').unwrap().0;
    let hex = "a".repeat(64);
    let others = [
        "README".into(),
        "model.safetensors".into(),
        format!("{hex}.safetensors"),
        format!("{fingerprint}/model.safetensors"),
        format!("{fingerprint}/{hex}"),
        format!("{fingerprint}/{hex}.bin"),
        format!("{fingerprint}/{hex}.safetensors.bak"),
        format!("{fingerprint}/{}.safetensors", "A".repeat(64)),
        format!("{}/{hex}.safetensors", &fingerprint[1..]),
        format!("{fingerprint}/{}.safetensors", "a".repeat(63)),
        format!("{fingerprint}/{}/{hex}.safetensors", "c".repeat(64)),
        format!("models/{hex}.safetensors"),
    ];
    for name in &others {
        let path = world.path("store").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        age(&path, 100);
    }
    let folder = format!("{fingerprint}/{}.safetensors", "b".repeat(64));
    fs::create_dir(world.path("store").join(&folder)).unwrap();
    assert_eq!(world.listed(), [a.as_str()]);
    for condition in [
        ["--older-than", "1d"],
        ["--keep", "1"],
        ["--fingerprint", fingerprint],
    ] {
        let done = world.prefixes(&[&["gc"], &condition[..]].concat());
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert!(
            done.out.is_empty() || done.out == lines(&[&a]),
            "{}",
            done.out
        );
    }
    let left: BTreeSet<String> = others.into_iter().collect();
    assert_eq!(world.files(), left);
    assert!(world.path("store").join(folder).is_dir());
}
