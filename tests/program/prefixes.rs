//! Prefix stores in a folder, as a user of the program meets them.

mod gc;
mod library;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use crate::common::{self, TempDir, tiny};
use prefold::model::config::Family;
use serde_json::Value;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// The output of a run that had nothing to remark.
    #[track_caller]
    fn quiet(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""));
        self.out
    }

    /// Output and the one line on standard error of a run that did what it should.
    #[track_caller]
    fn noted(self) -> (String, String) {
        assert_eq!(self.code, Some(0), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        (self.out, self.err)
    }

    #[track_caller]
    fn json(self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }

    /// The one line of a run that must fail and say all of this.
    #[track_caller]
    fn bad(self, exit: i32, says: &[&str]) -> String {
        assert_eq!(
            (self.code, self.out.as_str()),
            (Some(exit), ""),
            "{}",
            self.err
        );
        assert!(self.err.starts_with("prefold: "), "{}", self.err);
        assert!(self.err.ends_with('\n'), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        for word in says {
            assert!(
                self.err.contains(word),
                "{:?} does not say {word:?}",
                self.err
            );
        }
        self.err
    }
}

/// Tiny models, and the program in a folder of its own without the machine's settings.
struct World(TempDir);

impl World {
    fn new() -> World {
        let folder = TempDir::new();
        for family in [Family::Llama, Family::Qwen2] {
            let model = family.name();
            fs::create_dir(folder.path().join(model)).unwrap();
            let config = tiny::config(family).to_string();
            folder.write(&format!("{model}/config.json"), config);
            let tensors = tiny::safetensors(&tiny::tensors(family));
            folder.write(&format!("{model}/model.safetensors"), tensors);
        }
        World(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prefold"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("PREFOLD_") {
                command.env_remove(&*name);
            }
        }
        command
            .current_dir(self.0.path())
            .env("HOME", self.0.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("PREFOLD_CACHE", self.path("cache"))
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(&mut self.command(arguments))
    }

    /// `prefold prefixes` in the folder `store`.
    fn prefixes(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["prefixes"], arguments, &["--store", "store"]].concat())
    }

    /// Makes the prefix `file` of a model and gives the name that it has in stores.
    fn prefill(&self, file: &str, model: &str, ids: &str, more: &[&str]) -> String {
        let made = ["prefill", "--ids", ids, "--model", model, "-o", file];
        let made = self.run(&[&made[..], more].concat());
        assert_eq!(made.code, Some(0), "{}", made.err);
        let shown = self.run(&["inspect", "--json", file]).json();
        let fingerprint = shown["origin"]["model"]["fingerprint"].as_str().unwrap();
        format!("{fingerprint}/{}", shown["content_id"].as_str().unwrap())
    }

    /// The prefix `a`, `b` or `c` of one model, with 3, 4 or 5 tokens.
    fn small(&self, file: &str) -> String {
        let ids = match file {
            "a" => "[3,1,2]",
            "b" => "[4,1,2,7]",
            _ => "[5,1,2,7,8]",
        };
        self.prefill(file, "llama", ids, &[])
    }

    /// Where the store `store` keeps a prefix.
    fn kept(&self, name: &str) -> PathBuf {
        self.path(&format!("store/{name}.safetensors"))
    }

    /// Pushes the files `a`, `b` and `c`, which are so many days old in the store.
    fn aged<const N: usize>(&self, days: [u32; N]) -> [String; N] {
        std::array::from_fn(|i| {
            let file = ["a", "b", "c"][i];
            let name = self.small(file);
            self.prefixes(&["push", file]).quiet();
            age(&self.kept(&name), days[i]);
            name
        })
    }

    /// All names in the store, in its order.
    #[track_caller]
    fn listed(&self) -> Vec<String> {
        let rows = self.prefixes(&["ls", "--json"]).json();
        let names = rows.as_array().unwrap().iter();
        names
            .map(|row| row["name"].as_str().unwrap().into())
            .collect()
    }

    /// All files of the store, without its path.
    fn files(&self) -> BTreeSet<String> {
        let root = self.path("store");
        let mut files = BTreeSet::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let path = path.strip_prefix(&root).unwrap();
                    files.insert(path.display().to_string());
                }
            }
        }
        files
    }
}

fn ran(command: &mut Command) -> Ran {
    outcome(command.output().unwrap())
}

fn outcome(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn age(file: &Path, days: u32) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - days * DAY).unwrap();
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len()
}

fn content_id(name: &str) -> &str {
    name.split_once('/').unwrap().1
}

/// A line for each.
fn lines<S: AsRef<str>>(names: &[S]) -> String {
    names
        .iter()
        .map(|name| format!("{}\n", name.as_ref()))
        .collect()
}

/// The keys of a JSON object.
fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().unwrap();
    object.keys().map(String::as_str).collect()
}

#[test]
fn a_prefix_goes_in_and_comes_out_the_same() {
    let world = World::new();
    let name = world.small("a");
    assert!(!world.path("store").exists());
    assert_eq!(
        world.prefixes(&["push", "a"]).quiet(),
        lines(&[name.as_str()])
    );
    assert_eq!(
        world.files(),
        BTreeSet::from([format!("{name}.safetensors")])
    );
    let bytes = fs::read(world.path("a")).unwrap();
    assert_eq!(fs::read(world.kept(&name)).unwrap(), bytes);

    let id = content_id(&name);
    for given in [name.as_str(), id, &id[..20], &id[..4]] {
        let out = world.prefixes(&["pull", given]).quiet();
        let path = world.path(out.strip_suffix('\n').unwrap());
        assert_eq!(
            fs::canonicalize(path).unwrap(),
            fs::canonicalize(world.kept(&name)).unwrap(),
        );
    }
    let out = world.prefixes(&["pull", id, "-o", "out"]).quiet();
    assert_eq!(out, "out\n");
    assert_eq!(fs::read(world.path("out")).unwrap(), bytes);
    // A copy: what is done to it is not done to the store.
    fs::write(world.path("out"), "").unwrap();
    assert_eq!(fs::read(world.kept(&name)).unwrap(), bytes);
    // And not from the network's cache: a folder needs none.
    assert!(!world.path("cache").exists());

    let (out, freed) = world.prefixes(&["rm", id]).noted();
    assert_eq!(out, lines(&[name.as_str()]));
    assert!(freed.contains("kB"), "{freed}");
    assert_eq!(world.files(), BTreeSet::new());
    assert_eq!(world.prefixes(&["ls", "--json"]).quiet().trim(), "[]");
    world.prefixes(&["rm", &name]).bad(1, &[id]);
}

#[test]
fn several_at_once() {
    let world = World::new();
    let names = [world.small("a"), world.small("b")];
    assert_eq!(world.prefixes(&["push", "a", "b"]).quiet(), lines(&names));
    let out = world.prefixes(&["pull", &names[1], &names[0]]).quiet();
    let paths: Vec<&str> = out.lines().collect();
    assert_eq!(paths.len(), 2);
    for (path, name) in paths.iter().zip([&names[1], &names[0]]) {
        assert!(path.ends_with(&format!("{name}.safetensors")), "{path}");
    }
    // One file cannot be two prefixes.
    world
        .prefixes(&["pull", &names[0], &names[1], "-o", "out"])
        .bad(2, &["--output"]);
    assert!(!world.path("out").exists());
    // A wrong name removes nothing.
    world
        .prefixes(&["rm", &names[0], "0000000000"])
        .bad(1, &["0000000000"]);
    assert_eq!(world.files().len(), 2);
    let (out, _) = world.prefixes(&["rm", &names[0], &names[1]]).noted();
    assert_eq!(out, lines(&names));
    assert_eq!(world.files(), BTreeSet::new());
    // Whatever comes of the second, a whole name of nothing or the first again, what has gone is
    // printed.
    let fingerprint = names[0].split_once('/').unwrap().0;
    let unknown = format!("{fingerprint}/{}", "0".repeat(64));
    for second in [&unknown, &names[0]] {
        // It is there still where the pass before removed nothing.
        assert_eq!(world.prefixes(&["push", "a"]).code, Some(0));
        let done = world.prefixes(&["rm", &names[0], second]);
        let printed: BTreeSet<String> = done.out.lines().map(String::from).collect();
        let gone = !world.kept(&names[0]).exists();
        assert_eq!(printed.contains(&names[0]), gone, "{}", done.err);
    }
}

#[test]
fn what_is_there_stays() {
    let world = World::new();
    let name = world.small("a");
    world.prefixes(&["push", "a"]).quiet();
    let kept = world.kept(&name);
    let bytes = fs::read(&kept).unwrap();
    age(&kept, 3);
    let since = fs::metadata(&kept).unwrap().modified().unwrap();
    let (out, note) = world.prefixes(&["push", "a"]).noted();
    assert_eq!(out, lines(&[name.as_str()]));
    assert!(note.contains("already"), "{note}");
    let rows = world.prefixes(&["push", "a", "--json"]).json();
    assert_eq!(rows[0]["new"], false);

    // The same keys and values in other bytes: shorter ones, as many, and damaged ones.
    let half = world.prefill("half", "llama", "[3,1,2]", &["--dtype", "f16"]);
    let plain = world.prefill("plain", "llama", "[3,1,2]", &["--k-rope", "none"]);
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    world.0.write("damaged", damaged);
    assert_eq!([&half, &plain], [&name; 2]);
    assert_eq!(length(&world.path("plain")), bytes.len() as u64);
    for (file, said) in [
        ("half", content_id(&name)),
        ("plain", content_id(&name)),
        ("damaged", "SHA-256"),
    ] {
        assert_ne!(fs::read(world.path(file)).unwrap(), bytes);
        world.prefixes(&["push", file]).bad(1, &[file, said]);
    }
    assert_eq!(fs::read(&kept).unwrap(), bytes);
    assert_eq!(fs::metadata(&kept).unwrap().modified().unwrap(), since);
    assert_eq!(world.files().len(), 1);

    // What was pruned is another one, and so is another model's.
    let pruned = world.prefill("pruned", "llama", "[3,1,2,9,8,7]", &["--keep", "0.6"]);
    let other = world.prefill("other", "qwen2", "[3,1,2]", &[]);
    assert_eq!(BTreeSet::from([&name, &pruned, &other]).len(), 3);
    assert_eq!(
        world.prefixes(&["push", "pruned", "other"]).quiet(),
        lines(&[pruned, other])
    );
    assert_eq!(world.files().len(), 3);
}

#[test]
fn what_is_not_a_prefix_does_not_go_in() {
    let world = World::new();
    world.small("a");
    let bytes = fs::read(world.path("a")).unwrap();
    world.0.write("short", &bytes[..bytes.len() - 1]);
    world.0.write("long", [&bytes[..], b"x"].concat());
    world.0.write("empty", "");
    world.0.write("text", "a prefix, honestly");
    fs::create_dir(world.path("folder")).unwrap();
    for wrong in [
        "short",
        "long",
        "empty",
        "text",
        "folder",
        // Sound as safetensors, but of something else.
        "llama/model.safetensors",
        "nowhere",
    ] {
        world.prefixes(&["push", wrong]).bad(1, &[wrong]);
    }
    assert!(!world.path("store").exists() || world.files().is_empty());
}

#[test]
fn names_that_mean_nothing_or_too_much() {
    let world = World::new();
    let name = world.small("a");
    world.prefixes(&["push", "a"]).quiet();
    let (fingerprint, id) = name.split_once('/').unwrap();
    let long = "a".repeat(65);
    let outside = format!("../store/{name}");
    let suffixed = format!("{name}.safetensors");
    let reversed = format!("{id}/{fingerprint}");
    for wrong in [
        "",
        "/",
        ".",
        "..",
        "abc",
        &id[..3],
        "ghij",
        "llama.gguf",
        &long,
        &outside,
        &suffixed,
        &reversed,
        &name[1..],
        "-1",
        "0000000000",
        "\u{e9}\u{e9}\u{e9}\u{e9}",
    ] {
        for command in ["pull", "rm"] {
            world.prefixes(&[command, "--", wrong]).bad(1, &[wrong]);
        }
    }
    // Control characters do not reach the terminal.
    for command in ["pull", "rm"] {
        let line = world
            .prefixes(&[command, "ab\x1b[31m\ncd\u{202e}"])
            .bad(1, &["\\u{1b}[31m\\ncd\\u{202e}"]);
        assert!(!line.trim_end().contains(char::is_control), "{line:?}");
    }
    // Two that begin the same, and one id of two models.
    let last = if id.ends_with('0') { "1" } else { "0" };
    let twin = format!("{}{last}", &id[..63]);
    fs::write(world.kept(&format!("{fingerprint}/{twin}")), "").unwrap();
    let other = "f".repeat(fingerprint.len());
    for command in ["pull", "rm"] {
        world.prefixes(&[command, &id[..4]]).bad(1, &[&id[..4]]);
        world.prefixes(&[command, &id[..63]]).bad(1, &[&id[..63]]);
    }
    world.prefixes(&["pull", id]).quiet();
    fs::create_dir(world.path("store").join(&other)).unwrap();
    fs::write(world.kept(&format!("{other}/{id}")), "").unwrap();
    for command in ["pull", "rm"] {
        world.prefixes(&[command, id]).bad(1, &[id]);
    }
    world.prefixes(&["pull", &name]).quiet();
    assert_eq!(world.files().len(), 3);
}

#[test]
fn a_stored_file_that_is_not_what_its_name_says() {
    let world = World::new();
    let [a, b] = world.aged([2, 1]);
    let kept = world.kept(&a);
    let whole = fs::read(&kept).unwrap();
    let other = fs::read(world.kept(&b)).unwrap();
    for wrong in [&whole[..whole.len() - 1], &whole[..9], b"", &other] {
        fs::write(&kept, wrong).unwrap();
        world.prefixes(&["pull", &a]).bad(1, &[content_id(&a)]);
        world
            .prefixes(&["pull", &a, "-o", "out"])
            .bad(1, &[content_id(&a)]);
        assert!(!world.path("out").exists());
    }
    // It does not hinder the others, and it can be removed.
    world.prefixes(&["pull", &b]).quiet();
    world.prefixes(&["rm", &a]).noted();
    world.prefixes(&["push", "a"]).quiet();
    assert_eq!(fs::read(&kept).unwrap(), whole);
}

#[test]
fn newest_first() {
    let world = World::new();
    let [a, b, c] = world.aged([2, 3, 1]);
    let order = [c, a, b];
    assert_eq!(world.listed(), order);
    // As a table, with names that are long enough for `pull`.
    let text = world.prefixes(&["ls"]).quiet();
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(rows.len(), 4, "{text}");
    assert_eq!(
        rows[0].split_whitespace().collect::<Vec<_>>(),
        ["CONTENT", "ID", "MODEL", "SIZE", "AGE"]
    );
    for ((row, name), age) in rows[1..].iter().zip(&order).zip(["1 d", "2 d", "3 d"]) {
        let (fingerprint, id) = name.split_once('/').unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[..2], [&id[..12], &fingerprint[..12]]);
        assert!(row.ends_with(age), "{row:?}");
        world.prefixes(&["pull", words[0]]).quiet();
    }
}

#[test]
fn rows_for_other_programs() {
    let world = World::new();
    let name = world.small("a");
    let (fingerprint, id) = name.split_once('/').unwrap();
    let bytes = length(&world.path("a"));
    let rows = world.prefixes(&["push", "a", "--json"]).json();
    assert_eq!(rows.as_array().unwrap().len(), 1);
    let row = &rows[0];
    assert_eq!(
        keys(row),
        BTreeSet::from([
            "name",
            "fingerprint",
            "content_id",
            "bytes",
            "modified",
            "new",
            "tokens",
            "cache_salt",
            "kv_transfer_params",
        ])
    );
    assert_eq!(row["name"], name);
    assert_eq!(row["fingerprint"], fingerprint);
    assert_eq!(row["content_id"], id);
    assert_eq!(row["bytes"], bytes);
    assert_eq!(row["new"], true);
    assert_eq!(row["tokens"].to_string(), "[3,1,2]");
    assert_eq!(row["kv_transfer_params"]["prefix"], name);
    // What `export --to vllm` says of the same file.
    let told = world.run(&["export", "--to", "vllm", "a", "-o", "exported"]);
    assert_eq!(row["cache_salt"], told.json()["cache_salt"]);

    let listed = world.prefixes(&["ls", "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let common = ["name", "fingerprint", "content_id", "bytes", "modified"];
    assert_eq!(keys(&listed[0]), BTreeSet::from(common));
    for key in common {
        assert_eq!(listed[0][key], row[key], "{key}");
    }
    let pulled = world.prefixes(&["pull", &name, "--json"]).json();
    let path = world.path(pulled[0]["path"].as_str().unwrap());
    assert_eq!(length(&path), bytes);
    assert_eq!(pulled[0]["name"], name);
}

#[test]
fn processes_push_the_same_prefix_at_once() {
    let world = World::new();
    let name = world.small("a");
    assert_eq!(
        world.prefill("half", "llama", "[3,1,2]", &["--dtype", "f16"]),
        name
    );
    let at_once = |files: &[&str]| -> Vec<Ran> {
        let started: Vec<_> = files
            .iter()
            .map(|file| {
                world
                    .command(&["prefixes", "push", file, "--json", "--store", "store"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let done = started
            .into_iter()
            .map(|process| outcome(process.wait_with_output().unwrap()));
        let done = done.collect();
        // Whole, and nothing half made beside it.
        assert_eq!(
            world.files(),
            BTreeSet::from([format!("{name}.safetensors")])
        );
        done
    };
    let new = |ran: Ran| ran.json()[0]["new"].as_bool().unwrap();
    for _ in 0..5 {
        let done = at_once(&["a"; 4]);
        assert_eq!(done.into_iter().map(new).filter(|&new| new).count(), 1);
        let kept = fs::read(world.kept(&name)).unwrap();
        assert_eq!(kept, fs::read(world.path("a")).unwrap());
        fs::remove_dir_all(world.path("store")).unwrap();
    }
    // Of two files of one name one stays, and only its process says that it is there.
    for _ in 0..10 {
        let done = at_once(&["a", "half"]);
        let succeeded: Vec<bool> = done.iter().map(|ran| ran.code == Some(0)).collect();
        let stays = ["a", "half"].map(|file| {
            fs::read(world.path(file)).unwrap() == fs::read(world.kept(&name)).unwrap()
        });
        assert_eq!(succeeded, stays);
        for ran in done {
            if ran.code == Some(0) {
                assert!(new(ran));
            } else {
                ran.bad(1, &[content_id(&name)]);
            }
        }
        fs::remove_dir_all(world.path("store")).unwrap();
    }
}

#[test]
fn a_store_that_is_not_there() {
    let world = World::new();
    for command in [&["ls"][..], &["ls", "--json"], &["gc", "--keep", "1G"]] {
        world.prefixes(command).bad(1, &["store"]);
    }
    for command in ["pull", "rm"] {
        world.prefixes(&[command, "01234567"]).bad(1, &["store"]);
    }
    assert!(!world.path("store").exists());
    // A file is not a store.
    world.0.write("store", "");
    world.small("a");
    for command in [&["ls"][..], &["push", "a"], &["pull", "01234567"]] {
        world.prefixes(command).bad(1, &["store"]);
    }
    // Folders above it are made as well.
    let deep = ["prefixes", "push", "a", "--store", "x/y/z"];
    world.run(&deep).quiet();
    assert!(world.path("x/y/z").is_dir());
}

#[cfg(unix)]
#[test]
fn a_store_that_may_only_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let [a] = world.aged([1]);
    world.small("b");
    let store = world.path("store");
    let folder = world.kept(&a).parent().unwrap().to_path_buf();
    let allow = |mode| {
        for folder in [&store, &folder] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    allow(0o555);
    let applies = File::create(folder.join("try")).is_err();
    if applies {
        world.prefixes(&["push", "b"]).bad(1, &["store"]);
        world.prefixes(&["rm", &a]).bad(1, &["store"]);
        world
            .prefixes(&["gc", "--older-than", "0d"])
            .bad(1, &["store"]);
        // What needs no writing continues.
        assert_eq!(world.listed(), [a.as_str()]);
        world.prefixes(&["pull", &a]).quiet();
        let (_, note) = world.prefixes(&["push", "a"]).noted();
        assert!(note.contains("already"), "{note}");
        // A folder that is not a model's is left alone, as lost+found on a disk of its own.
        allow(0o755);
        fs::create_dir(store.join("lost+found")).unwrap();
        let closed = fs::Permissions::from_mode(0o0);
        fs::set_permissions(store.join("lost+found"), closed).unwrap();
        assert_eq!(world.listed(), [a.as_str()]);
    } else {
        common::say("skipped: root may write into a folder that is read-only");
    }
    allow(0o755);
}

#[test]
fn which_store_it_is() {
    let world = World::new();
    let name = world.small("a");
    let push = ["prefixes", "push", "a"];
    let at = |store: &str| world.path(&format!("{store}/{name}.safetensors")).exists();
    ran(&mut world.command(&push)).quiet();
    assert!(at("cache/prefixes"));
    ran(world.command(&push).env("PREFOLD_STORE", "variable")).quiet();
    assert!(at("variable"));
    let flag = [&push[..], &["--store", "flag"]].concat();
    ran(world.command(&flag).env("PREFOLD_STORE", "unused")).quiet();
    assert!(at("flag") && !world.path("unused").exists());
    let address = format!("file://{}", world.path("with a space").display());
    world
        .run(&[&push[..], &["--store", &address]].concat())
        .quiet();
    assert!(at("with a space"));
    // An empty variable counts as unset, as with the others.
    let (out, note) = ran(world.command(&push).env("PREFOLD_STORE", "")).noted();
    assert!(note.contains("already"), "{note}");
    assert_eq!(out, lines(&[&name]));
    // From elsewhere, with an absolute path.
    let flag = world.path("flag").display().to_string();
    let pulled = world
        .run(&["prefixes", "pull", &name, "--store", &flag])
        .quiet();
    assert_eq!(pulled, format!("{flag}/{name}.safetensors\n"));
}

#[test]
fn addresses_of_no_store() {
    let world = World::new();
    let ls = |store: &str, says: &[&str]| {
        let line = world.run(&["prefixes", "ls", "--store", store]);
        let line = line.bad(1, says);
        assert!(!line.trim_end().contains(char::is_control), "{line:?}");
    };
    if !cfg!(feature = "store") {
        for store in [
            "redis://localhost:6379/0",
            "s3://bucket/prefix",
            "gs://bucket",
            "az://container",
            "http://localhost/prefixes",
            "https://user:secret@localhost/prefixes",
        ] {
            ls(store, &["feature", "store"]);
        }
    }
    ls("ftp://somewhere/prefixes", &["ftp"]);
    ls("no\x1b[31m\nsuch", &["no\\u{1b}[31m\\nsuch"]);
    ls("file://", &["file://"]);
    // A misspelt scheme is not a folder to be made.
    world.small("a");
    let push = ["prefixes", "push", "a", "--store", "ftp://somewhere"];
    world.run(&push).bad(1, &["ftp"]);
    assert!(!world.path("ftp:").exists());
}

#[test]
fn control_characters_in_a_files_name() {
    let world = World::new();
    let line = world
        .prefixes(&["push", "no\x1b[31m\nsuch"])
        .bad(1, &["no\\u{1b}[31m\\nsuch"]);
    assert!(!line.trim_end().contains(char::is_control), "{line:?}");
}

#[cfg(feature = "hub")]
#[test]
fn what_cannot_be_loaded_into_a_slot() {
    let world = World::new();
    let name = world.small("a");
    world.prefixes(&["push", "a"]).quiet();
    fs::create_dir(world.path("slots")).unwrap();
    // Taken and freed: nothing listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let load = |prefix: &str, to: &str, slot: &str, folder: &str| {
        world.prefixes(&[
            "load",
            prefix,
            "--to",
            to,
            "--slot",
            slot,
            "--slot-folder",
            folder,
        ])
    };
    for given in ["a", &name, content_id(&name)] {
        load(given, &address, "0", "slots").bad(1, &[&address]);
    }
    load("0000000000", &address, "0", "slots").bad(1, &["0000000000"]);
    load("llama/config.json", &address, "0", "slots").bad(1, &["config.json"]);
    for wrong in ["", "localhost", "ftp://localhost", "http://"] {
        let given = load("a", wrong, "0", "slots");
        let code = given.code.unwrap();
        given.bad(code, &[]);
        assert!(matches!(code, 1 | 2), "{code}");
    }
    for wrong in ["-1", "first", "99999999999999999999"] {
        let slot = format!("--slot={wrong}");
        let more = ["--to", &address, "--slot-folder", "slots"];
        world
            .prefixes(&[&["load", "a", &slot], &more[..]].concat())
            .bad(2, &["--slot"]);
    }
    assert_eq!(fs::read_dir(world.path("slots")).unwrap().count(), 0);
}
