//! The server over real connections: its own calls, the proxy, faults, and what never changes.
#![cfg(feature = "serve")]

mod calls;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod frozen;
#[cfg(all(feature = "cli", feature = "mcp"))]
mod mcp;
#[cfg(feature = "cli")]
mod program;
mod proxied;
mod upstream;

use std::fmt::Write;
use std::time::Duration;

use prefold::serve::{Log, ServeOptions, Server};
use prefold::{Device, Engine};

use common::Random;

/// The engine of the tests' model; `None`, said aloud, where it is missing.
fn engine() -> Option<Engine> {
    let model = common::smollm2()?;
    Some(Engine::builder(model).device(Device::Cpu).build().unwrap())
}

/// Options of a quiet server on a free port, with time enough for a busy machine.
fn options() -> ServeOptions {
    let mut options = ServeOptions::default();
    options.listen = ([127, 0, 0, 1], 0).into();
    options.min_tokens = 100;
    options.deadline = Duration::from_secs(60);
    options.call_deadline = Duration::from_secs(600);
    options.drain = Duration::from_secs(60);
    options.log = Log::Off;
    options
}

/// A server by options that `change` changes.
fn server(change: impl FnOnce(&mut ServeOptions)) -> Option<Server> {
    let mut options = options();
    change(&mut options);
    Some(Server::start(engine()?, options).unwrap())
}

/// A document of some 30 sentences, another for every number.
fn document(number: u64) -> String {
    const WHO: [&str; 8] = [
        "The keeper",
        "A sailor",
        "The mayor",
        "Her aunt",
        "The clerk",
        "A diver",
        "The cook",
        "My son",
    ];
    const DID: [&str; 8] = [
        "painted",
        "counted",
        "sold",
        "lost",
        "repaired",
        "described",
        "measured",
        "forgot",
    ];
    const WHAT: [&str; 8] = [
        "the lamp",
        "nine boats",
        "an old map",
        "the bridge",
        "two bells",
        "the harbour",
        "a letter",
        "the wall",
    ];
    let mut random = Random(number);
    let mut text = String::new();
    for _ in 0..30 {
        let mut pick = |list: &[&'static str; 8]| list[random.below(8)];
        let (who, did, what) = (pick(&WHO), pick(&DID), pick(&WHAT));
        let year = 1800 + random.below(200);
        let _ = write!(text, "{who} {did} {what} in the spring of {year}. ");
    }
    text.trim_end().to_string()
}
