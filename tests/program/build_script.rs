//! The build script with stand-ins for nvcc of several versions: it compiles for what they know, with
//! options that they have, and a build without kernels is a warning or, where asked for, an error.

use crate::common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::common::TempDir;

/// The compiled build script, or a line that says what is skipped.
fn script() -> Option<&'static Path> {
    static SCRIPT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let script = SCRIPT.get_or_init(|| {
        let out = common::scratch().join(format!("build-script-{}", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(compiler);
        command
            .args(["--edition", "2024", "-o"])
            .arg(&out)
            .arg(source);
        match command.output() {
            Ok(done) => {
                assert!(done.status.success(), "{}", text(&done.stderr));
                Some(out)
            }
            Err(_) => {
                common::say("skipped: no rustc to compile the build script with");
                None
            }
        }
    });
    script.as_deref()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An nvcc of one version that knows some architectures and options and logs what it is called with.
fn stand_in(
    folder: &TempDir,
    release: &str,
    known: &[&str],
    help: &str,
    compiles: bool,
) -> PathBuf {
    let log = folder.path().join("log");
    let listed: String = known.iter().map(|name| format!("sm_{name}\n")).collect();
    let failure = if compiles {
        ""
    } else {
        "echo 'no host compiler' >&2; exit 1"
    };
    let codes: String = known
        .iter()
        .map(|name| format!("*code=sm_{name}|"))
        .collect();
    let script = format!(
        r#"#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.99"; exit;;
  --list-gpu-code) printf '{listed}'; exit;;
  --help) echo '{help}'; exit;;
esac
echo "$*" >> '{log}'
while [ $# -gt 0 ]; do
  case "$1" in
    -o) out="$2"; shift;;
    -gencode) case "$2" in {codes}arch=compute_80,code=compute_80) ;; *)
      echo "nvcc fatal: Unsupported gpu architecture '$2'" >&2; exit 1;; esac; shift;;
    -std=c++17|-O3|-fatbin|*.cu) ;;
    -compress-mode=size) case '{help}' in *compress-mode*) ;; *)
      echo "nvcc fatal: Unknown option '$1'" >&2; exit 1;; esac;;
    *) echo "nvcc fatal: Unknown option '$1'" >&2; exit 1;;
  esac
  shift
done
{failure}
echo image > "$out"
"#,
        listed = listed.replace('\n', "\\n"),
        log = log.display(),
    );
    let path = folder.write("nvcc", script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs the build script in `folder` beside the crate's kernels.
fn build(script: &Path, folder: &TempDir, nvcc: Option<&Path>, required: bool) -> Output {
    let kernels = folder.path().join("kernels");
    if !kernels.exists() {
        let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::os::unix::fs::symlink(crate_root.join("kernels"), kernels).unwrap();
    }
    let mut command = Command::new(script);
    command
        .current_dir(folder.path())
        .env("OUT_DIR", folder.path())
        .env("CARGO_FEATURE_CUDA", "1")
        .env("PATH", "/usr/bin:/bin");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PREFOLD_REQUIRE_NVCC"] {
        command.env_remove(variable);
    }
    if let Some(nvcc) = nvcc {
        command.env("NVCC", nvcc);
    }
    if required {
        command.env("PREFOLD_REQUIRE_NVCC", "1");
    }
    command.output().unwrap()
}

/// How many images the build would embed.
fn embedded(folder: &TempDir) -> usize {
    let code = fs::read_to_string(folder.path().join("images.rs")).unwrap();
    code.matches("include_bytes!").count()
}

fn kernel_files() -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    names
        .filter(|path| path.extension().is_some_and(|end| end == "cu"))
        .count()
}

#[test]
fn an_older_nvcc_compiles_for_what_it_knows() {
    let Some(script) = script() else { return };
    let folder = TempDir::new();
    let nvcc = stand_in(&folder, "12.4", &["50", "80", "89"], "--maxrregcount", true);
    let done = build(script, &folder, Some(&nvcc), true);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(embedded(&folder), kernel_files());
    let said = text(&done.stdout);
    assert!(said.contains("sm_80, sm_89 with"), "{said}");
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert_eq!(log.lines().count(), kernel_files());
    for line in log.lines() {
        assert!(
            !line.contains("compress") && !line.contains("sm_90"),
            "{line}"
        );
        assert!(line.contains("code=compute_80"), "{line}");
    }
    // Nothing changed, nothing compiled.
    let again = build(script, &folder, Some(&nvcc), true);
    assert!(again.status.success() && !text(&again.stdout).contains("compiled"));
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), log);
}

#[test]
fn a_newer_nvcc_compiles_for_all_and_compresses() {
    let Some(script) = script() else { return };
    let folder = TempDir::new();
    let all = ["80", "89", "90", "90a", "100", "120"];
    let nvcc = stand_in(
        &folder,
        "13.0",
        &all,
        "--compress-mode (-compress-mode)",
        true,
    );
    let done = build(script, &folder, Some(&nvcc), true);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert_eq!(log.lines().count(), kernel_files());
    for line in log.lines() {
        assert!(line.contains("-compress-mode=size"), "{line}");
        assert!(
            line.contains("code=sm_90a") && line.contains("code=sm_120"),
            "{line}"
        );
    }
    // What 12.8 compresses so drivers before 12.4 cannot unpack.
    let folder = TempDir::new();
    let nvcc = stand_in(
        &folder,
        "12.8",
        &["80", "90"],
        "--compress-mode (-compress-mode)",
        true,
    );
    let done = build(script, &folder, Some(&nvcc), true);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(
        !log.contains("compress") && log.contains("code=sm_90 "),
        "{log}"
    );
}

#[test]
fn an_nvcc_that_fails_is_as_one_that_is_not_there() {
    let Some(script) = script() else { return };
    let (compiles, knows) = (true, ["80"]);
    let cases: [(&str, &[&str], bool, &str); 2] = [
        ("12.0", &knows, !compiles, "no host compiler"),
        ("13.9", &["200"], compiles, "compiles for none of sm_80"),
    ];
    for (release, known, compiles, reason) in cases {
        let folder = TempDir::new();
        let nvcc = stand_in(&folder, release, known, "", compiles);
        let done = build(script, &folder, Some(&nvcc), false);
        let said = text(&done.stdout);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let warning = said.lines().find(|line| line.contains("warning")).unwrap();
        assert!(
            warning.contains(reason) && warning.contains("without CUDA"),
            "{said}"
        );
        assert_eq!(embedded(&folder), 0);
        let left = fs::read_dir(folder.path()).unwrap().flatten();
        let left = left.filter(|entry| entry.path().extension().is_some_and(|e| e == "partial"));
        assert_eq!(left.count(), 0);

        let done = build(script, &folder, Some(&nvcc), true);
        let complaint = text(&done.stderr);
        assert!(!done.status.success(), "{complaint}");
        assert!(
            complaint.contains(reason) && complaint.contains("REQUIRE_NVCC"),
            "{complaint}"
        );
    }
}

#[test]
fn without_nvcc_the_build_says_so() {
    let Some(script) = script() else { return };
    if ["/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/bin/nvcc"]
        .iter()
        .any(|p| Path::new(p).exists())
    {
        common::say("skipped: this machine has an nvcc");
        return;
    }
    let folder = TempDir::new();
    let done = build(script, &folder, None, false);
    assert!(done.status.success() && text(&done.stdout).contains("nvcc was not found"));
    assert_eq!(embedded(&folder), 0);
    let done = build(script, &folder, None, true);
    assert!(!done.status.success() && text(&done.stderr).contains("nvcc was not found"));
}
