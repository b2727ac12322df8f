//! `prefold encode`: a text as the K and V of a few memory tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::hub::{DEFAULT, Settings};
use crate::prefix::Method;
use crate::soft::{self, Adapter, EncodeOptions, Source};
use crate::{Control, Engine, Error, KvPrefix};
use clap::ArgGroup;

use super::config;
use super::failure::{Failure, Outcome, say};
use super::files::{check_target, read_text, write_stdout};
use super::model::{self, Busy};
use super::soft::{FormArgs, Given, parse_ids};

/// Folder of the sample adapter, for the default model: in a checkout, and in prefold's cache folder.
const SAMPLE: &str = "smollm2-135m-instruct-16";

/// Soft compression: texts as KV prefixes of a few memory tokens (500xCompressor, ICAE, pooled states)
///
/// Several files go to --output-dir, each as NAME.safetensors, and share forward passes. A prefix that is there
/// already and of the same text, model, adapter and form stays, so that a run that was cut short is taken up
/// again. After a bad file it continues; the exit code is then 1.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("given").args(["files", "text", "ids"]).required(true)))]
#[command(group(ArgGroup::new("target").args(["output", "output_dir"]).required(true)))]
pub struct Args {
    /// Texts; `-` is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The text itself
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Token ids in place of a text, as `[1, 2, 3]`
    #[arg(long, value_name = "JSON")]
    ids: Option<String>,
    /// The adapter: a folder with adapter_config.json, adapter_model.safetensors and
    /// memory_embeddings.safetensors [default: `adapter` of prefold.toml, or the sample adapter where it is
    /// installed]
    #[arg(long, short, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Where the prefix of one text goes
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The folder of the prefixes of any number of files; their paths are printed
    #[arg(long, value_name = "DIR", requires = "files")]
    output_dir: Option<PathBuf>,
    #[command(flatten)]
    form: FormArgs,
    /// What the decoder reads: the memory tokens' K and V, their output states, or means of the text's
    /// [default: as the adapter was trained]
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// Only the first so many memory tokens, of an adapter that was trained by --nested [default: all]
    #[arg(long, value_name = "K")]
    memory_tokens: Option<usize>,
    /// Longest piece of text, in tokens [default: as the adapter was trained]. A longer text is cut into
    /// as few pieces of equal length as fit; each gets its own memory tokens, joined in order
    #[arg(long, value_name = "N")]
    piece_tokens: Option<usize>,
    #[command(flatten)]
    model: model::Args,
}

/// Tokens of the texts that are encoded before their prefixes are written.
const GROUP: usize = 4096;

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    match (&args.output_dir, &args.output) {
        (Some(folder), _) => many(&args, folder),
        (None, Some(output)) => one(&args, output),
        (None, None) => Err(Failure::Usage("say where it goes, by --output".into())),
    }
}

fn one(args: &Args, output: &Path) -> Outcome {
    let given = match (&args.text, &args.ids, args.files.as_slice()) {
        (Some(text), ..) => Given::Text(text.clone()),
        (_, Some(ids), _) => Given::Ids(parse_ids("--ids", ids)?),
        (.., [file]) => Given::Text(read_text(file)?),
        _ => {
            let message = "--output is for one text; several go to --output-dir";
            return Err(Failure::Usage(message.into()));
        }
    };
    check_target(output)?;
    let (model, adapter) = open(args)?;
    let source = given.source(&model.engine, false)?;
    let busy = Busy::new("encoding".into());
    let start = Instant::now();
    let prefix =
        model
            .engine
            .prefixes()
            .with(&busy.control())
            .encode(&adapter, &source, &options(args))?;
    drop(busy);
    args.form
        .write_and_say(prefix, output, start.elapsed().as_secs_f64())
}

fn options(args: &Args) -> EncodeOptions {
    EncodeOptions {
        method: args.method,
        piece_tokens: args.piece_tokens,
    }
}

fn open(args: &Args) -> Outcome<(model::Model, Adapter)> {
    let model = args.model.open()?;
    let folder = match &args.adapter {
        Some(folder) => folder.clone(),
        None => default_adapter(&model.engine)?,
    };
    let mut adapter = model.engine.prefixes().adapter(&folder)?;
    if let Some(count) = args.memory_tokens {
        adapter = adapter.first(count)?;
    }
    Ok((model, adapter))
}

/// A text, where it came from, and the file that its prefix goes to.
struct Job {
    file: PathBuf,
    source: Source,
    output: PathBuf,
}

/// What has become of the files so far.
#[derive(Default)]
struct Tally {
    made: usize,
    kept: usize,
    failed: usize,
}

fn many(args: &Args, folder: &Path) -> Outcome {
    if args.text.is_some() || args.ids.is_some() {
        return Err(Failure::Usage("--output-dir takes files, by name".into()));
    }
    let outputs = outputs(&args.files, folder)?;
    let (model, adapter) = open(args)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let total = outputs.len();
    let mut tally = Tally::default();
    let mut group: Vec<Job> = Vec::new();
    for (at, (file, output)) in args.files.iter().zip(outputs).enumerate() {
        let read = read_text(file).and_then(|text| {
            let source = Given::Text(text).source(&model.engine, false)?;
            if source.ids.is_empty() {
                return Err(Error::format(file, "it has no text").into());
            }
            let kept = is_made(args, &model, &adapter, &source, &output)?;
            Ok((source, kept))
        });
        match read {
            Ok((_, true)) => {
                tally.kept += 1;
                write_stdout(&format!("{}\n", output.display()))?;
            }
            Ok((source, false)) => group.push(Job {
                file: file.clone(),
                source,
                output,
            }),
            Err(failure) => {
                tally.failed += 1;
                say(&failure.line());
            }
        }
        let tokens: usize = group.iter().map(|job| job.source.ids.len()).sum();
        if tokens >= GROUP || at + 1 == total {
            let shown = tally.made + tally.kept + group.len();
            let busy = Busy::new(format!("encoding, {shown} of {total} texts"));
            encode_group(args, &model, &adapter, &group, &busy.control(), &mut tally)?;
            group.clear();
        }
    }
    let Tally { made, kept, failed } = tally;
    say(&format!("{made} prefixes made, {kept} were there already"));
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Rows {
            failed,
            rows: total,
        }),
    }
}

fn encode_group(
    args: &Args,
    model: &model::Model,
    adapter: &Adapter,
    group: &[Job],
    control: &Control,
    tally: &mut Tally,
) -> Outcome {
    let sources: Vec<Source> = group.iter().map(|job| job.source.clone()).collect();
    let encoded =
        model
            .engine
            .prefixes()
            .with(control)
            .encode_many(adapter, &sources, &options(args));
    let prefixes = match (encoded, group) {
        (Ok(prefixes), _) => prefixes,
        (Err(Error::Cancelled), _) => return Err(Error::Cancelled.into()),
        (Err(error), [job]) => {
            tally.failed += 1;
            say(&format!("{}: {error}", job.file.display()));
            return Ok(());
        }
        // One of them cannot be encoded: each by itself.
        (Err(_), several) => {
            for job in several {
                encode_group(
                    args,
                    model,
                    adapter,
                    std::slice::from_ref(job),
                    control,
                    tally,
                )?;
            }
            return Ok(());
        }
    };
    for (prefix, job) in prefixes.into_iter().zip(group) {
        match args.form.write(prefix, &job.output) {
            Ok(_) => {
                tally.made += 1;
                write_stdout(&format!("{}\n", job.output.display()))?;
            }
            Err(failure) => {
                tally.failed += 1;
                say(&format!("{}: {}", job.file.display(), failure.line()));
            }
        }
    }
    Ok(())
}

/// The file of each text's prefix.
fn outputs(files: &[PathBuf], folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut names = BTreeMap::new();
    let mut outputs = Vec::with_capacity(files.len());
    for file in files {
        let name = match file.file_name() {
            Some(name) if file != Path::new("-") => name,
            _ => {
                let message = format!("{}: --output-dir takes files, by name", file.display());
                return Err(Failure::Usage(message));
            }
        };
        let mut target = name.to_os_string();
        target.push(".safetensors");
        if let Some(other) = names.insert(target.clone(), file) {
            return Err(Failure::Usage(format!(
                "{} and {} would both become {}; encode them into two folders",
                other.display(),
                file.display(),
                folder.join(&target).display()
            )));
        }
        outputs.push(folder.join(target));
    }
    Ok(outputs)
}

/// Whether a file is this text's prefix already, in this form.
fn is_made(
    args: &Args,
    model: &model::Model,
    adapter: &Adapter,
    source: &Source,
    output: &Path,
) -> Outcome<bool> {
    let wanted = model
        .engine
        .prefixes()
        .encoded_id(adapter, source, &options(args))?;
    Ok(KvPrefix::read(output).is_ok_and(|(prefix, dtype)| {
        prefix.content_id() == wanted
            && dtype == args.form.dtype
            && prefix.k_rope() == args.form.k_rope
    }))
}

/// The adapter that is used when none is named, if it is here and this model's.
fn default_adapter(engine: &Engine) -> Outcome<PathBuf> {
    if let Some(folder) = &config::get()?.adapter {
        return Ok(folder.clone());
    }
    let installed = Settings::from_env()?.adapters().join(SAMPLE);
    let candidates = [Path::new("assets").join(SAMPLE), installed.clone()];
    let missing = |why: String| {
        Err(Failure::Usage(format!(
            "{why}; name an adapter by --adapter, or train one (prefold train regen --help)"
        )))
    };
    for folder in candidates {
        if let Some(settings) = soft::Settings::open(&folder)? {
            return match settings.model.as_ref() == Some(&engine.info().fingerprint) {
                true => Ok(folder),
                false => missing(format!("the sample adapter is for {}", DEFAULT.name)),
            };
        }
    }
    missing(format!(
        "the sample adapter of the release archive is not in {}",
        installed.display()
    ))
}
