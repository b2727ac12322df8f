//! `prefold generate`: text after a prefix and a prompt.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::model::decoder::Input;
use crate::prefix::KvPrefix;
use crate::soft::{Adapter, Finish, Query, Sampling};
use serde_json::json;

use super::failure::{Failure, Outcome, usage};
use super::files::{stdout_failure, text_or_file, write_stdout};
use super::interrupt;
use super::model::{self, Busy};
use super::soft::{parse_ids, read_prefix};

/// Text after a KV prefix and a prompt, by the model itself
#[derive(clap::Args)]
pub struct Args {
    /// A prefix that this model made
    #[arg(long, short, value_name = "FILE")]
    prefix: Option<PathBuf>,
    /// The prompt, or `@FILE`; special tokens such as <|im_start|> are read as such. After a prefix
    /// it may be left out: a single BOS then asks for the text
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_ids")]
    prompt: Option<String>,
    /// Token ids in place of a prompt, as `[1, 2, 3]`
    #[arg(long, value_name = "JSON")]
    prompt_ids: Option<String>,
    /// The adapter that made the prefix: what it was trained to begin a text with (ICAE's [AE]
    /// embedding) then asks for the text in place of BOS
    #[arg(long, short, value_name = "FOLDER", requires = "prefix", conflicts_with_all = ["prompt", "prompt_ids"])]
    adapter: Option<PathBuf>,
    /// Most tokens to make
    #[arg(long, short = 'n', value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Only the likeliest tokens that have so much probability together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Continue after the end of a text
    #[arg(long)]
    ignore_eos: bool,
    /// Print JSON, with ids and text, instead of the text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: model::Args,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let sampling = Sampling {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        ignore_eos: args.ignore_eos,
    };
    usage(sampling.check())?;
    if args.prefix.is_none() && args.prompt.is_none() && args.prompt_ids.is_none() {
        let reason = "there is neither --prompt nor --prompt-ids, and no --prefix to continue";
        return Err(Failure::Usage(reason.into()));
    }
    let given_ids = match &args.prompt_ids {
        Some(json) => Some(parse_ids("--prompt-ids", json)?),
        None => None,
    };
    let text = args.prompt.as_deref().map(text_or_file).transpose()?;
    let prefix = match &args.prefix {
        Some(path) => Some(read_prefix(path)?.0),
        None => None,
    };
    let model = args.model.open()?;
    let engine = &model.engine;
    let adapter = match (&args.adapter, &prefix) {
        (Some(folder), Some(prefix)) => {
            let adapter = engine.prefixes().adapter(folder)?;
            Some(beginning(adapter, folder, prefix)?)
        }
        _ => None,
    };
    let begin = adapter.as_ref().and_then(Adapter::begin);
    let prompt = match (given_ids, text) {
        _ if begin.is_some() => Vec::new(),
        (Some(ids), _) => ids,
        (None, Some(text)) => {
            // After a prefix no second BOS.
            let tokenizer = engine.tokenizer()?;
            tokenizer.encode(&text, prefix.is_none(), true)?.ids
        }
        (None, None) => vec![engine.info().bos.ok_or_else(|| Error::Input {
            what: "--prompt".into(),
            reason:
                "the model names no BOS to ask for the text with; give one by --prompt-ids".into(),
        })?],
    };

    let tokenizer = engine.tokenizer().ok();
    if tokenizer.is_none() && !args.json {
        // Says why there can be no text.
        engine.tokenizer()?;
    }
    let busy = args.json.then(|| Busy::new("generating".into()));
    let mut stream = Stream::default();
    let mut failure = None;
    let mut each = |_, id: u32| {
        if let (Some(tokenizer), false) = (tokenizer, args.json)
            && let Err(error) = stream.push(&tokenizer.token_bytes(id))
        {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let ask = Query {
        prefix: prefix.as_ref(),
        prompt: begin.map_or(Input::Ids(&prompt), Input::Embeddings),
        gold: &[],
    };
    let mut replies =
        engine
            .prefixes()
            .with(&interrupt::control())
            .answer(&[ask], &sampling, &mut each)?;
    drop(busy);
    if let Some(failure) = failure {
        return Err(failure);
    }
    let Some(made) = replies.pop().map(|reply| reply.generated) else {
        return Ok(());
    };
    if args.json {
        let mut report = json!(made);
        report["prompt_ids"] = json!(prompt);
        report["text"] = match tokenizer {
            Some(tokenizer) => tokenizer.decode(&made.ids).into(),
            None => serde_json::Value::Null,
        };
        report["load_seconds"] = model.load_seconds.into();
        return write_stdout(&format!("{report}\n"));
    }
    stream.end()?;
    if made.finish == Finish::Context {
        eprintln!("the model's context is full");
    }
    Ok(())
}

/// The adapter, if it has something of its own to begin with and made the prefix.
fn beginning(adapter: Adapter, folder: &Path, prefix: &KvPrefix) -> Outcome<Adapter> {
    if adapter.begin().is_none() {
        return Err(Failure::Failed(Error::Input {
            what: format!("--adapter {}", folder.display()),
            reason: "it has no ae_embedding: without --adapter a BOS asks for the text".into(),
        }));
    }
    adapter.check_prefix(prefix)?;
    Ok(adapter)
}

/// Bytes of tokens on their way to standard output: a character goes out when it is whole.
#[derive(Default)]
struct Stream {
    held: Vec<u8>,
}

impl Stream {
    fn push(&mut self, bytes: &[u8]) -> Outcome {
        self.held.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.held) {
            Ok(text) => text.len(),
            // What can never become a character goes out as it is shown in any case.
            Err(error) if error.error_len().is_some() => self.held.len(),
            Err(error) => error.valid_up_to(),
        };
        self.flush(whole)
    }

    /// What is left, and the end of the last line.
    fn end(mut self) -> Outcome {
        self.held.push(b'\n');
        self.flush(self.held.len())
    }

    fn flush(&mut self, count: usize) -> Outcome {
        let mut out = std::io::stdout().lock();
        let text = String::from_utf8_lossy(&self.held[..count]);
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(stdout_failure)?;
        drop(text);
        self.held.drain(..count);
        Ok(())
    }
}
