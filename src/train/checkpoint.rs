//! A run on disk: the adapter's folder in PEFT's layout, and beside its files what training needs to
//! continue.
//!
//! The folder is whole at any time. A new version is exchanged with the old one in one step on Linux and
//! macOS. Where the system or the file system cannot do that, the folder is missing for a moment between two
//! renames, and after a kill there the next run puts the old version back.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hmac_sha256::Hash as Sha256;
use safetensors::tensor::View;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::adamw::Moments;
use super::data::Position;
use super::objective::Tensor;
use super::parameters::Parameters;
use super::start::MEMORY;
use crate::error::{Error, Result};
use crate::files::link_target;
use crate::kv_prefix::{Dtype, KRope, KvPrefix, Origin, Parts, Rope, Shape, hex};
use crate::mapped;
use crate::model::config::Config;
use crate::model::lora::floats;
use crate::model::safetensors as files;
use crate::soft::Settings;

/// What marks a folder as a run's, and its version.
const STATE: &str = "trainer.json";
/// The file of a trained prefix.
pub const PREFIX: &str = "prefix.safetensors";
/// The `task` among the options of a run that trains a prefix.
pub(crate) const PREFIX_TASK: &str = "prefix";
const OPTIMIZER: &str = "optimizer.safetensors";
const VERSION: u32 = 1;
/// Options have a kilobyte or two.
const LONGEST_STATE: u64 = 1 << 20;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// Steps taken.
    pub step: u64,
    /// Rows drawn for them.
    pub position: Position,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Time that the steps took.
    pub seconds: f64,
    /// Everything that decides what the steps do, by the names of options.
    pub options: Map<String, Value>,
}

impl State {
    /// A run before its first step.
    pub fn new(options: Map<String, Value>) -> Self {
        State {
            version: VERSION,
            step: 0,
            position: Position::default(),
            tokens: 0,
            seconds: 0.0,
            options,
        }
    }
}

/// What an adapter's own files say beside its values.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterMetadata {
    /// The model that it is for.
    pub model: String,
    /// Dropout that it was trained with.
    pub dropout: f32,
    /// How its encoder reads; `None` for an adapter without memory tokens.
    pub settings: Option<Settings>,
    /// What the file of a prefix says, where that is what is trained.
    pub prefix: Option<PrefixMetadata>,
}

/// What the file of a trained prefix says beside its values.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixMetadata {
    /// Model and text.
    pub origin: Origin,
    /// How its keys are rotated.
    pub rope: Option<Rope>,
    /// Key and value heads.
    pub kv_heads: usize,
}

impl PrefixMetadata {
    /// The prefix after so many steps.
    ///
    /// # Errors
    /// [`Error::Input`] for parameters that are not finite or do not fit the sizes.
    pub fn prefix(&self, parameters: &Parameters, step: u64) -> Result<KvPrefix> {
        let layers = parameters.prefix_layers(self.kv_heads);
        let [rows, width] = parameters.tensors.first().map_or([0; 2], |t| t.shape);
        let mut hash = Sha256::new();
        for value in parameters.tensors.iter().flat_map(|t| &t.values) {
            hash.update(value.to_le_bytes());
        }
        let mut origin = self.origin.clone();
        // Without it the prefixes of all steps would have one id.
        let digest = hex(&hash.finalize());
        origin.kept_by = Some(format!(
            "step {step}, {}",
            digest.get(..16).unwrap_or(&digest)
        ));
        KvPrefix::new(Parts {
            origin,
            shape: Shape {
                layers: layers.len(),
                kv_heads: self.kv_heads,
                tokens: rows,
                head_dim: width / self.kv_heads.max(1),
            },
            layers,
            k_rope: KRope::Applied,
            rope: self.rope.clone(),
            positions: (0..rows as u32).collect(),
            next_pos: rows,
            source_ids: Vec::new(),
        })
    }
}

/// Writes a run's folder whole or not at all: beside it, synced, and then in its place.
///
/// # Errors
/// [`Error::Io`] that names what could not be written.
pub fn write(
    folder: &Path,
    parameters: &Parameters,
    moments: &Moments,
    card: &AdapterMetadata,
    state: &State,
) -> Result<()> {
    let folder = &link_end(folder);
    let [fresh, old] = beside(folder)?;
    remove(&fresh)?;
    let done = write_fresh(&fresh, folder, parameters, moments, card, state)
        .and_then(|()| replace(folder, &fresh, &old));
    if done.is_err() {
        let _ = remove(&fresh);
    }
    done
}

/// Writes the next version of `folder`, for those who may read the last.
fn write_fresh(
    fresh: &Path,
    folder: &Path,
    parameters: &Parameters,
    moments: &Moments,
    card: &AdapterMetadata,
    state: &State,
) -> Result<()> {
    fs::create_dir_all(fresh).map_err(Error::io(fresh))?;
    #[cfg(unix)]
    if let Ok(last) = fs::metadata(folder) {
        use std::os::unix::fs::PermissionsExt;
        let mode = last.permissions().mode() | 0o700;
        fs::set_permissions(fresh, fs::Permissions::from_mode(mode)).map_err(Error::io(fresh))?;
    }
    #[cfg(not(unix))]
    let _ = folder;
    let (memory, factors): (Vec<&Tensor>, Vec<&Tensor>) =
        parameters.tensors.iter().partition(|t| t.name == MEMORY);
    let file = |name: &str, bytes: &[u8]| write_synced(&fresh.join(name), bytes);
    match &card.prefix {
        Some(prefix) => {
            let prefix = prefix.prefix(parameters, state.step)?;
            file(PREFIX, &prefix.to_bytes(Dtype::F32)?)?;
        }
        None => {
            file("adapter_config.json", &pretty(&peft(parameters, card))?)?;
            let named = factors
                .iter()
                .map(|t| (t.name.clone(), &t.shape, &t.values));
            file("adapter_model.safetensors", &pack(named)?)?;
        }
    }
    if !memory.is_empty() {
        let named = memory.iter().map(|t| (t.name.clone(), &t.shape, &t.values));
        file("memory_embeddings.safetensors", &pack(named)?)?;
    }
    if let Some(settings) = &card.settings {
        file("prefold.json", &pretty(settings)?)?;
    }
    let sides = [("mean", &moments.mean), ("square", &moments.square)];
    let named = sides.iter().flat_map(|(side, values)| {
        let all = parameters.tensors.iter().zip(values.iter());
        all.map(move |(t, values)| (format!("{side}.{}", t.name), &t.shape, values))
    });
    file(OPTIMIZER, &pack(named)?)?;
    // Last, so that a folder that was cut short by other means is not taken for one.
    file(STATE, &pretty(state)?)?;
    sync(fresh)
}

/// Puts the folder `fresh` in the place of `folder`, whose last version stands at `old` meanwhile.
fn replace(folder: &Path, fresh: &Path, old: &Path) -> Result<()> {
    remove(old)?;
    let there = folder.exists();
    let exchanged = there && exchange(fresh, folder);
    if !exchanged {
        if there {
            fs::rename(folder, old).map_err(Error::io(folder))?;
        }
        if let Err(error) = fs::rename(fresh, folder) {
            if there {
                let _ = fs::rename(old, folder);
            }
            return Err(Error::io(folder)(error));
        }
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty());
    sync(parent.unwrap_or(Path::new(".")))?;
    // What was there before has the one name or the other.
    remove(fresh)?;
    remove(old)
}

/// Exchanges two folders in one step; false where that cannot be done, and then nothing has happened.
#[cfg(all(
    feature = "train",
    any(target_os = "linux", target_os = "android", target_vendor = "apple")
))]
fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(all(
    feature = "train",
    any(target_os = "linux", target_os = "android", target_vendor = "apple")
)))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// What there is where a run wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// A run's folder.
    Run,
    /// Something else.
    Other,
}

/// Looks at `folder`, puts back what a run that was killed between two renames left beside it, and
/// clears what a killed run left besides.
///
/// # Errors
/// [`Error::Io`].
pub fn look(folder: &Path) -> Result<Found> {
    let folder = &link_end(folder);
    let [fresh, old] = beside(folder)?;
    if !folder.exists() && old.join(STATE).exists() {
        fs::rename(&old, folder).map_err(Error::io(folder))?;
    }
    if folder.join(STATE).exists() {
        remove(&fresh)?;
        remove(&old)?;
        return Ok(Found::Run);
    }
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(match entries.next() {
            None => Found::Nothing,
            Some(_) => Found::Other,
        }),
        Err(_) if !folder.exists() => Ok(Found::Nothing),
        Err(_) => Ok(Found::Other),
    }
}

/// Reads where the run in `folder` stands.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`].
pub fn read_state(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    let state: State = mapped::read_json(&path, LONGEST_STATE)?;
    if state.version != VERSION {
        let reason = format!("version {}, expected {VERSION}", state.version);
        return Err(Error::format(path, reason));
    }
    Ok(state)
}

/// Reads parameters and moments of the run in `folder`, which stands at `state`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for parameters that do not fit the model, or moments that do not fit the
/// parameters; [`Error::Unsupported`] for a kind of adapter that is not built.
pub fn read(folder: &Path, config: &Config, state: &State) -> Result<(Parameters, Moments)> {
    // By what the run recorded: a file of that name may have been put into an adapter's folder.
    let is_prefix = state.options.get("task").and_then(Value::as_str) == Some(PREFIX_TASK);
    let parameters = match is_prefix {
        true => Parameters::of_prefix(&KvPrefix::read(&folder.join(PREFIX))?.0)?,
        false => {
            let with_memory = folder.join("memory_embeddings.safetensors").exists();
            Parameters::open(folder, config, with_memory)?
        }
    };
    let path = folder.join(OPTIMIZER);
    let tensors = files::read(&path, mapped::Access::Map)?;
    let side = |side: &str| -> Result<Vec<Vec<f32>>> {
        let one = |t: &Tensor| {
            let name = format!("{side}.{}", t.name);
            match tensors.get(&name) {
                Some(found) if found.shape == t.shape => floats(found),
                _ => Err(Error::format(&path, format!("no {name} of {:?}", t.shape))),
            }
        };
        parameters.tensors.iter().map(one).collect()
    };
    let moments = Moments {
        step: state.step,
        mean: side("mean")?,
        square: side("square")?,
    };
    Ok((parameters, moments))
}

/// PEFT's `adapter_config.json`.
fn peft(parameters: &Parameters, card: &AdapterMetadata) -> Value {
    // PEFT's own are whole, as a rule.
    let alpha = parameters.lora.alpha;
    let alpha = match alpha.fract() == 0.0 && alpha.abs() < 1e9 {
        true => json!(alpha as i64),
        false => json!(alpha),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": card.model,
        "r": parameters.lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": card.dropout,
        "target_modules": parameters.targets(),
        "use_rslora": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
    })
}

/// Where a folder is that may be named by a symbolic link, so that the link stays.
fn link_end(folder: &Path) -> PathBuf {
    let there = fs::canonicalize(folder);
    there.unwrap_or_else(|_| link_target(folder).unwrap_or_else(|_| folder.into()))
}

/// The names of a folder's next and last version beside it.
///
/// # Errors
/// [`Error::Input`] for a path that does not end with the name of a folder.
pub(super) fn beside(folder: &Path) -> Result<[PathBuf; 2]> {
    let name = folder.file_name().ok_or_else(|| {
        let reason = "expected the name of a folder that may be replaced";
        Error::input(format!("out {}", folder.display()), reason)
    })?;
    Ok(["new", "old"].map(|which| {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{which}"));
        folder.with_file_name(hidden)
    }))
}

/// One f32 tensor on its way to a file.
struct Floats<'a> {
    shape: &'a [usize; 2],
    values: &'a [f32],
}

impl View for Floats<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = |value: &f32| value.to_le_bytes();
        Cow::Owned(self.values.iter().flat_map(bytes).collect())
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

fn pack<'a>(
    tensors: impl Iterator<Item = (String, &'a [usize; 2], &'a Vec<f32>)>,
) -> Result<Vec<u8>> {
    let views = tensors.map(|(name, shape, values)| (name, Floats { shape, values }));
    // Readers look for this key.
    let metadata = std::iter::once(("format".to_owned(), "pt".to_owned())).collect();
    safetensors::serialize(views, Some(metadata))
        .map_err(|error| Error::io("checkpoint")(io::Error::other(error)))
}

fn pretty(value: &impl Serialize) -> Result<Vec<u8>> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::io("checkpoint")(io::Error::other(error)))?;
    Ok((text + "\n").into_bytes())
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    File::create_new(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(Error::io(path))
}

/// Has the names in a folder written to disk.
fn sync(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(folder))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder)(error)),
        _ => Ok(()),
    }
}
