//! `prefold prefixes`: prefix files on many machines, and into a running server.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::Error;
use crate::hub::Settings;
use crate::prefix::store::{Entry, Keep, PrefixName, Store};
use crate::prefix::{Placeholder, vllm};
use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::{Failure, Outcome, say};
use super::files::write_stdout;
use super::models::size;
#[cfg(feature = "hub")]
use super::slot::Server;
use super::soft::read_prefix;

/// Keeps KV prefixes in a store that many machines share, and loads them into llama.cpp's server
///
/// A store is a folder or, in builds with the feature `store`, redis://HOST/DATABASE, s3://BUCKET/ROOT,
/// gs://BUCKET/ROOT, az://CONTAINER/ROOT or https://HOST/ROOT (read only). Keys, regions and endpoints come
/// from the environment, as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL. A NAME is FINGERPRINT/CONTENT_ID; where a
/// store can be listed the content id will do, or four and more of its first digits.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct StoreArgs {
    /// The store [default: the local cache, in which `pull` keeps what it fetched]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "PREFOLD_STORE",
        hide_env_values = true
    )]
    store: Option<String>,
}

/// Of commands that remove: a shared store must be named.
#[derive(clap::Args)]
struct NamedStoreArgs {
    /// The store; PREFOLD_STORE does not count here [default: the local cache]
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
}

#[derive(clap::Args)]
struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Puts prefix files into a store and prints their names; what is there already stays
    ///
    /// With --json each comes with what a request to vLLM says: tokens, cache_salt, kv_transfer_params.
    Push {
        /// Prefix files
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Fetches prefixes into the local cache and prints their paths; those of a folder stay where they are
    Pull {
        /// Which prefixes
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Copy it here instead, if it is one
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Lists a store, the newest first
    Ls {
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Removes prefixes from a store; local caches keep theirs
    Rm {
        /// Which prefixes
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        #[command(flatten)]
        store: NamedStoreArgs,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Removes old prefixes, those beyond a number of bytes, or those of a model
    Gc {
        /// Remove what is older, as 30d, 12h or 45m; in the local cache, what was not used for as long
        #[arg(long, value_name = "AGE", value_parser = age)]
        older_than: Option<Duration>,
        /// Keep the newest up to so many bytes, as 10G
        #[arg(long, value_name = "BYTES", value_parser = keep)]
        keep: Option<u64>,
        /// Only prefixes of the model of this fingerprint, or of the models whose fingerprints begin so; all of
        /// them where nothing else is said
        #[arg(long, value_name = "FINGERPRINT")]
        fingerprint: Option<String>,
        /// Print what would go, and remove nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        store: NamedStoreArgs,
        #[command(flatten)]
        json: JsonArgs,
    },
    /// Loads a prefix into a slot of a running llama.cpp server, checks that it is used, and prints the ids that a
    /// prompt to the slot begins with, as JSON
    ///
    /// The server needs --slot-save-path, a folder that this program can write to. A slot is empty after a restart of
    /// the server: load again.
    #[cfg(feature = "hub")]
    Load {
        /// A prefix file, or the name of a prefix in the store
        #[arg(value_name = "FILE|NAME")]
        prefix: String,
        /// The server's address
        #[arg(long, value_name = "ADDRESS")]
        to: String,
        /// The slot, from 0
        #[arg(long, value_name = "N", default_value_t = 0)]
        slot: u32,
        /// The folder of the server's --slot-save-path, as this program sees it
        #[arg(long, value_name = "FOLDER")]
        slot_folder: PathBuf,
        /// The server's --api-key
        #[arg(
            long,
            value_name = "KEY",
            env = "LLAMA_API_KEY",
            hide_env_values = true
        )]
        api_key: Option<String>,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// An age in days, hours or minutes.
fn age(text: &str) -> Result<Duration, String> {
    let split = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[split.len()..] {
        "d" => Some(24 * 60 * 60),
        "h" => Some(60 * 60),
        "m" => Some(60),
        _ => None,
    };
    let seconds = split.parse::<u64>().ok().zip(unit);
    seconds
        .and_then(|(count, unit)| count.checked_mul(unit))
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a number of days, hours or minutes, as 30d, 12h or 45m".into())
}

/// A number of bytes, or none.
fn keep(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        text => super::bytes(text),
    }
}

/// Where fetched prefixes are kept.
fn cache() -> Outcome<PathBuf> {
    Ok(Settings::from_env()?.cache.join("prefixes"))
}

fn open(address: Option<&str>) -> Outcome<Store> {
    match address.filter(|address| !address.is_empty()) {
        Some(address) => Ok(Store::open(address)?),
        None => {
            let cache = cache()?;
            std::fs::create_dir_all(&cache).map_err(Error::io(&cache))?;
            Ok(Store::open(&cache.to_string_lossy())?)
        }
    }
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    match args.command {
        Command::Push { files, store, json } => push(&files, &store, json.json),
        Command::Pull {
            names,
            output,
            store,
            json,
        } => pull(&names, output.as_deref(), &store, json.json),
        Command::Ls { store, json } => {
            let entries = open(store.store.as_deref())?.list()?;
            match json.json {
                true => print_json(entries.iter().map(described).collect()),
                false => write_stdout(&table(&entries)),
            }
        }
        Command::Rm { names, store, json } => {
            let from = open(store.store.as_deref())?;
            // All are looked for before any goes.
            let mut entries: Vec<Entry> = Vec::new();
            for name in &names {
                let entry = from.entry(&from.find(name)?)?;
                if !entries.contains(&entry) {
                    entries.push(entry);
                }
            }
            remove(&from, &entries, false, json.json)
        }
        Command::Gc {
            older_than,
            keep,
            fingerprint,
            dry_run,
            store,
            json,
        } => {
            if older_than.is_none() && keep.is_none() && fingerprint.is_none() {
                let message = "say what may go: --older-than, --keep or --fingerprint";
                return Err(Failure::Usage(message.into()));
            }
            let keep = Keep {
                younger_than: older_than,
                bytes: keep,
                fingerprint,
            };
            let from = open(store.store.as_deref())?;
            let stale = from.stale(&keep)?;
            if !dry_run {
                from.sweep()?;
            }
            remove(&from, &stale, dry_run, json.json)
        }
        #[cfg(feature = "hub")]
        Command::Load {
            prefix,
            to,
            slot,
            slot_folder,
            api_key,
            store,
        } => {
            let server = Server::new(&to, slot, &slot_folder, api_key.as_deref())?;
            let path = match Path::new(&prefix).exists() {
                true => PathBuf::from(&prefix),
                false => {
                    let store = open(store.store.as_deref())?;
                    store.pull(&store.find(&prefix)?, &cache()?)?
                }
            };
            let (prefix, _) = read_prefix(&path)?;
            let loaded = server.load(&prefix, Placeholder::Unique)?;
            write_stdout(&format!("{}\n", json!(loaded)))
        }
    }
}

fn push(files: &[PathBuf], args: &StoreArgs, as_json: bool) -> Outcome {
    let store = open(args.store.as_deref())?;
    let push = |file: &PathBuf| {
        let (entry, new) = store.push(file)?;
        if !new {
            say(&format!("{} is there already", file.display()));
        }
        Ok((entry, new))
    };
    let line = |(entry, _): &(Entry, bool)| entry.name.to_string();
    let row = |file: &PathBuf, (entry, new): &(Entry, bool)| {
        let mut row = described(entry);
        row["new"] = (*new).into();
        add_request(&mut row, file, &entry.name)?;
        Ok(row)
    };
    rows(files, as_json, push, line, row)
}

fn pull(names: &[String], output: Option<&Path>, args: &StoreArgs, as_json: bool) -> Outcome {
    if output.is_some() && names.len() > 1 {
        return Err(Failure::Usage("--output is for one prefix".into()));
    }
    let store = open(args.store.as_deref())?;
    let cache = cache()?;
    let pull = |name: &String| {
        let name = store.find(name)?;
        let mut path = store.pull(&name, &cache)?;
        if let Some(output) = output {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            crate::files::write_whole(output, &bytes)?;
            path = output.into();
        }
        Ok((name, path))
    };
    let line = |(_, path): &(PrefixName, PathBuf)| path.display().to_string();
    let row = |_: &String, (name, path): &(PrefixName, PathBuf)| {
        let mut row = json!({"name": name.to_string(), "path": path});
        add_request(&mut row, path, name)?;
        Ok(row)
    };
    rows(names, as_json, pull, line, row)
}

/// Does something for each item and prints a line of each as it is done, or all rows as JSON in the end: also where
/// one fails, those before it.
fn rows<T, D>(
    items: &[T],
    as_json: bool,
    each: impl Fn(&T) -> Outcome<D>,
    line: impl Fn(&D) -> String,
    row: impl Fn(&T, &D) -> Outcome<Value>,
) -> Outcome {
    let mut rows = Vec::new();
    let mut done = Ok(());
    for item in items {
        done = each(item).and_then(|result| match as_json {
            // A row reads the prefix once more, which a line need not.
            true => row(item, &result).map(|row| rows.push(row)),
            false => write_stdout(&format!("{}\n", line(&result))),
        });
        if done.is_err() {
            break;
        }
    }
    if as_json && (done.is_ok() || !rows.is_empty()) {
        print_json(rows)?;
    }
    done
}

/// Adds what a request to vLLM says that asks for the prefix.
fn add_request(row: &mut Value, file: &Path, name: &PrefixName) -> Outcome {
    let (prefix, _) = read_prefix(file)?;
    let request = json!(vllm::request(
        &prefix,
        Placeholder::Unique,
        name.to_string()
    ));
    if let (Value::Object(row), Value::Object(request)) = (row, request) {
        row.extend(request);
    }
    Ok(())
}

/// Removes prefixes, or with `dry` only says which; those that went are printed also where one does not go.
fn remove(from: &Store, entries: &[Entry], dry: bool, as_json: bool) -> Outcome {
    let mut gone = Vec::new();
    let mut done = Ok(());
    for entry in entries {
        if !dry && let Err(error) = from.remove(&entry.name) {
            done = Err(error.into());
            break;
        }
        gone.push(entry);
    }
    if as_json {
        if done.is_ok() || !gone.is_empty() {
            print_json(gone.into_iter().map(described).collect())?;
        }
        return done;
    }
    let names: String = gone
        .iter()
        .map(|entry| format!("{}\n", entry.name))
        .collect();
    write_stdout(&names)?;
    let bytes = size(gone.iter().map(|entry| entry.bytes).sum());
    let prefixes = match gone.len() {
        1 => "1 prefix".into(),
        count => format!("{count} prefixes"),
    };
    let from = from.address();
    match dry {
        true => say(&format!("{prefixes} of {from} would go, {bytes}")),
        false => say(&format!("{prefixes} of {from} removed, {bytes} freed")),
    }
    done
}

fn print_json(rows: Vec<Value>) -> Outcome {
    write_stdout(&format!("{}\n", Value::Array(rows)))
}

/// An entry as JSON; `modified` is in seconds since 1970.
fn described(entry: &Entry) -> Value {
    let modified = entry
        .modified
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map(|since| since.as_secs());
    json!({
        "name": entry.name.to_string(),
        "fingerprint": entry.name.fingerprint(),
        "content_id": entry.name.content_id(),
        "bytes": entry.bytes,
        "modified": modified,
    })
}

/// The table of `prefold prefixes ls`.
fn table(entries: &[Entry]) -> String {
    let short = |text: &str| text.get(..SHORT).unwrap_or(text).to_owned();
    let mut cells = vec![["CONTENT ID", "MODEL", "SIZE", "AGE"].map(String::from)];
    cells.extend(entries.iter().map(|entry| {
        [
            short(entry.name.content_id()),
            short(entry.name.fingerprint()),
            size(entry.bytes),
            entry.modified.map_or("-".into(), elapsed),
        ]
    }));
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [a, b, c, d] = [0, 1, 2, 3].map(width);
    cells
        .iter()
        .map(|[id, model, size, age]| format!("{id:a$}  {model:b$}  {size:>c$}  {age:>d$}\n"))
        .collect()
}

/// Digits of a content id or a fingerprint in a table.
const SHORT: usize = 12;

/// How long ago something was, in one unit.
fn elapsed(at: SystemTime) -> String {
    let minutes = at.elapsed().unwrap_or_default().as_secs() / 60;
    match (minutes / 60 / 24, minutes / 60) {
        (0, 0) => format!("{minutes} min"),
        (0, hours) => format!("{hours} h"),
        (days, _) => format!("{days} d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_unit() {
        assert_eq!(age("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(age("45m"), Ok(Duration::from_secs(2700)));
        for text in [
            "",
            "d",
            "3",
            "-1d",
            "1w",
            "1.5h",
            "99999999999999999999d",
            "9999999999999999d",
        ] {
            assert!(age(text).is_err(), "{text}");
        }
    }
}
