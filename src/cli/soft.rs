//! What the commands around KV prefixes share: where the text comes from and how a file is written.

use std::path::{Path, PathBuf};

use crate::prefix::{Dtype, KRope, KvPrefix};
use crate::soft::Source;
use crate::{Engine, Error};

use super::failure::{Failure, Outcome};
use super::files::read_text;

/// A text, or ids in its place
#[derive(clap::Args)]
pub struct TextArgs {
    /// The text; `-` is standard input
    #[arg(value_name = "FILE", required_unless_present_any = ["text", "ids"])]
    file: Option<PathBuf>,
    /// The text itself
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    text: Option<String>,
    /// Token ids in place of a text, as `[1, 2, 3]`
    #[arg(long, value_name = "JSON", conflicts_with_all = ["file", "text"])]
    ids: Option<String>,
}

/// A text or ids, before there is a tokenizer.
pub enum Given {
    Text(String),
    Ids(Vec<u32>),
}

impl TextArgs {
    /// Reads what was given.
    pub fn read(&self) -> Outcome<Given> {
        match (&self.text, &self.ids, &self.file) {
            (Some(text), ..) => Ok(Given::Text(text.clone())),
            (_, Some(ids), _) => Ok(Given::Ids(parse_ids("--ids", ids)?)),
            (.., Some(file)) => Ok(Given::Text(read_text(file)?)),
            _ => Err(Failure::Usage("no text was given".into())),
        }
    }
}

impl Given {
    /// Its token ids. A prompt is read as `generate` reads one: with a BOS in front, where the tokenizer
    /// puts it, and special tokens by their names. Any other text is text only.
    pub fn source(self, engine: &Engine, prompt: bool) -> Outcome<Source> {
        Ok(match self {
            Given::Ids(ids) => Source::ids(ids),
            Given::Text(text) => {
                let ids = engine.tokenizer()?.encode(&text, prompt, prompt)?.ids;
                Source::text(&text, ids)
            }
        })
    }
}

/// Token ids as JSON.
pub fn parse_ids(option: &str, json: &str) -> Outcome<Vec<u32>> {
    serde_json::from_str(json).map_err(|_| {
        let shown: String = json.chars().take(40).collect();
        Failure::Usage(format!(
            "{option} {shown:?} is not a list of token ids, as [1, 2, 3]"
        ))
    })
}

/// How a prefix is written
#[derive(clap::Args)]
pub struct FormArgs {
    /// Element type of K and V in the file; f16, as most hosts keep them, halves it
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Dtype,
    /// Whether K is stored rotated to its positions
    #[arg(long, value_enum, default_value = "applied")]
    pub k_rope: KRope,
}

impl FormArgs {
    /// Writes the prefix, and gives the bytes of its file.
    pub fn write(&self, prefix: KvPrefix, output: &Path) -> Outcome<u64> {
        prefix.with_k_rope(self.k_rope)?.write(output, self.dtype)?;
        let file = std::fs::metadata(output).map_err(Error::io(output))?;
        Ok(file.len())
    }

    /// Writes the prefix and says so in one line on standard error.
    pub fn write_and_say(&self, prefix: KvPrefix, output: &Path, seconds: f64) -> Outcome {
        let (tokens, rows) = (prefix.origin().source_tokens, prefix.shape().tokens);
        let bytes = self.write(prefix, output)?;
        eprintln!("{tokens} tokens in {rows} rows of K and V, {bytes} bytes, {seconds:.2} s");
        Ok(())
    }
}

/// Reads a prefix for a command.
pub fn read_prefix(path: &Path) -> Outcome<(KvPrefix, Dtype)> {
    Ok(KvPrefix::read(path)?)
}
