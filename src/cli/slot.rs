//! A slot of a running llama.cpp server.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::error::Result;
use crate::kv_prefix::llama_cpp::check_architecture;
use crate::kv_prefix::store::shown;
use crate::prefix::llama_cpp::{Layout, Slot};
use crate::prefix::{KvPrefix, Placeholder};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::Agent;

use super::failure::{Failure, Outcome, say};

/// How long a server may take to answer: a prompt before ours may be long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of an answer.
const LONGEST_ANSWER: u64 = 64 << 20;

/// A server, and the slot that is meant.
pub struct Server {
    agent: Agent,
    address: String,
    /// Without a password.
    shown: String,
    slot: u32,
    /// Where the server saves slots.
    folder: PathBuf,
    api_key: Option<String>,
}

/// What a prompt to a loaded slot must say.
#[derive(Debug, Serialize)]
pub struct Loaded {
    /// The `id_slot` of a request.
    slot: u32,
    /// The ids that its prompt begins with.
    tokens: Vec<u32>,
    /// Cells of the cache that the prefix fills.
    cells: usize,
    /// The file of `POST /slots/N?action=restore`, which loads it again.
    filename: String,
}

#[derive(Deserialize)]
struct Properties {
    total_slots: u32,
    #[serde(default)]
    model_path: String,
}

#[derive(Deserialize)]
struct Models {
    #[serde(default)]
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    meta: Option<ModelSizes>,
}

#[derive(Deserialize)]
struct ModelSizes {
    n_vocab: Option<u32>,
}

#[derive(Deserialize)]
struct Restored {
    n_restored: usize,
}

#[derive(Deserialize)]
struct Completion {
    timings: Timings,
}

#[derive(Deserialize)]
struct Timings {
    cache_n: usize,
}

impl Server {
    /// Names a server, and checks what can be checked without it.
    pub fn new(address: &str, slot: u32, folder: &Path, api_key: Option<&str>) -> Outcome<Self> {
        if !["http://", "https://"]
            .iter()
            .any(|scheme| address.starts_with(scheme))
        {
            let message = format!("--to {address:?}: expected http://HOST:PORT");
            return Err(Failure::Usage(message));
        }
        if !folder.is_dir() {
            return Err(Failure::Failed(Error::io(folder)(
                ErrorKind::NotADirectory.into(),
            )));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        Ok(Server {
            agent,
            shown: shown(address),
            address: address.trim_end_matches('/').into(),
            slot,
            folder: folder.into(),
            api_key: api_key.map(Into::into),
        })
    }

    /// Loads a prefix in the layout of the server's own cache, and has the server compute one id after it.
    ///
    /// # Errors
    /// [`Error::Io`] where the server cannot be reached or answers with an error; [`Error::Format`] for an
    /// answer that is not llama.cpp's; [`Error::Input`] where the prefix, the slot or the folder does not
    /// suit the server, or it computes the prefix's ids itself instead of reading its rows;
    /// [`Error::Unsupported`] for a family whose order of K is not known.
    pub fn load(&self, prefix: &KvPrefix, placeholder: Placeholder) -> Result<Loaded> {
        let there: Properties = self.answer("/props", self.agent_get("/props"))?;
        if self.slot >= there.total_slots {
            return Err(self.refuse(format!(
                "it has slots 0 to {}, not {}; start it with -np {}",
                there.total_slots.saturating_sub(1),
                self.slot,
                self.slot.saturating_add(1)
            )));
        }
        // What can be refused is, before the slot loses what it holds.
        self.check_vocab(prefix)?;
        check_architecture(prefix)?;
        let layout = self.layout(prefix)?;
        let slot = Slot::new(prefix, &layout, placeholder)?;
        let filename = format!("prefold-slot{}-{:.16}.bin", self.slot, prefix.content_id());
        slot.write(&self.folder.join(&filename))?;
        let restored: Restored = self.slot_file("restore", &filename).map_err(|error| {
            let _ = std::fs::remove_file(self.folder.join(&filename));
            self.refuse(format!(
                "it does not take the prefix; is it the model that made it, {}? ({error})",
                prefix.origin().model
            ))
        })?;
        let wanted = slot.tokens.len();
        // One id more than the prefix, so that there is something to compute.
        let probe: Vec<u32> = slot
            .tokens
            .iter()
            .chain(slot.tokens.first())
            .copied()
            .collect();
        let read = self.complete(&probe, true)?.timings.cache_n;
        if restored.n_restored != wanted || read != wanted {
            let _ = std::fs::remove_file(self.folder.join(&filename));
            let _: Result<Value> =
                self.post(&format!("/slots/{}?action=erase", self.slot), &json!({}));
            return Err(self.refuse(format!(
                "it restored {} and read {read} of {wanted} tokens, and would compute the others from ids that stand \
                 for no text; a hybrid or sliding-window model cannot be restored",
                restored.n_restored
            )));
        }
        // The server takes a slot of any model of the same sizes.
        let made_by = &prefix.origin().model;
        let name = there
            .model_path
            .rsplit(['/', '\\'])
            .next()
            .unwrap_or_default();
        if !name.is_empty() && name != made_by.name {
            say(&format!(
                "the server's model is {name}, and the prefix was made by {made_by}; where they differ its answers mean \
                 nothing"
            ));
        }
        Ok(Loaded {
            slot: self.slot,
            tokens: slot.tokens,
            cells: slot.cells,
            filename,
        })
    }

    /// Refuses a server whose model has another number of ids.
    fn check_vocab(&self, prefix: &KvPrefix) -> Result<()> {
        let made_by = &prefix.origin().model;
        let models: Models = self.answer("/v1/models", self.agent_get("/v1/models"))?;
        let vocab = models
            .data
            .first()
            .and_then(|model| model.meta.as_ref()?.n_vocab);
        if let (Some(theirs), Some(ours)) = (vocab, made_by.vocab)
            && theirs != ours
        {
            return Err(self.refuse(format!(
                "its model has {theirs} ids, and the prefix was made by {made_by}, which has {ours}"
            )));
        }
        Ok(())
    }

    /// The layout of the server's cache, by a slot of one token that it saves.
    fn layout(&self, prefix: &KvPrefix) -> Result<Layout> {
        let ids = prefix.prompt_ids(Placeholder::Unique);
        self.complete(ids.get(..1).unwrap_or_default(), false)?;
        let name = format!("prefold-template-{}.bin", self.slot);
        let saved: Result<Value> = self.slot_file("save", &name);
        let path = self.folder.join(&name);
        let layout = saved.and_then(|_| Layout::of_template(&path));
        let _ = std::fs::remove_file(&path);
        layout.map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => self.refuse(format!(
                "it saved a slot, but not in {}; give the folder of its --slot-save-path by --slot-folder",
                self.folder.display()
            )),
            error => error,
        })
    }

    /// Has the slot read a prompt.
    fn complete(&self, prompt: &[u32], cached: bool) -> Result<Completion> {
        let body = json!({
            "prompt": prompt,
            "n_predict": 0,
            "id_slot": self.slot,
            "cache_prompt": cached,
        });
        self.post("/completion", &body)
    }

    fn slot_file<T: for<'a> Deserialize<'a>>(&self, action: &str, name: &str) -> Result<T> {
        let path = format!("/slots/{}?action={action}", self.slot);
        self.post(&path, &json!({"filename": name}))
    }

    fn agent_get(
        &self,
        path: &str,
    ) -> std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        self.with_key(self.agent.get(format!("{}{path}", self.address)))
            .call()
    }

    fn post<T: for<'a> Deserialize<'a>>(&self, path: &str, body: &Value) -> Result<T> {
        let request = self.agent.post(format!("{}{path}", self.address));
        let request = self.with_key(request.header("content-type", "application/json"));
        self.answer(path, request.send(body.to_string()))
    }

    fn with_key<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.api_key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// The answer to a request, or why it failed.
    fn answer<T: for<'a> Deserialize<'a>>(
        &self,
        path: &str,
        response: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T> {
        let mut response = response.map_err(|error| {
            self.failed(format!("{error}; is a llama.cpp server running there?"))
        })?;
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .with_config()
            .limit(LONGEST_ANSWER)
            .read_to_string()
            .map_err(|error| self.failed(format!("{path}: {error}")))?;
        if status == 200 {
            return serde_json::from_str(&text).map_err(|error| {
                let reason = format!("{path} answers what llama.cpp does not ({error})");
                Error::format(format!("server {}", self.shown), reason)
            });
        }
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        let said = said["error"]["message"].as_str().unwrap_or(&text);
        let advice = match status {
            401 | 403 => "; give its key by --api-key",
            501 => "; start it with --slot-save-path FOLDER",
            _ => "",
        };
        Err(self.failed(format!("{path} answers {status}: {said}{advice}")))
    }

    /// An error of the server.
    fn failed(&self, reason: String) -> Error {
        Error::failed(format!("server {}", self.shown), ErrorKind::Other, reason)
    }

    /// An error of what is asked of it.
    fn refuse(&self, reason: String) -> Error {
        Error::input(format!("server {}", self.shown), reason)
    }
}
