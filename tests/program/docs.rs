//! What the documentation and the packaging promise about the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Markdown files of the repository's own.
fn pages() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            // Texts that tests read are not documentation.
            let data = path.ends_with("tests/data");
            let hidden = name.starts_with('.') && name != ".github";
            if hidden || data || name == "target" || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            // The gallery is drawn from other people's texts, links and long lines included.
            } else if name.ends_with(".md") && name != "gallery.md" {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    assert!(found.len() > 15);
    found
}

#[test]
fn every_relative_link_leads_to_a_file() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            let target = target.split('#').next().unwrap();
            // The option reference is made by `make docs`.
            if target.is_empty() || target.contains(':') || target.ends_with("options.md") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{}: {target} is not there", page.display());
        }
    }
}

#[test]
fn the_readme_fits_and_lines_are_readable() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 150);
    for page in pages() {
        if !page.starts_with(root().join("docs")) || page.ends_with("options.md") {
            continue;
        }
        for line in fs::read_to_string(&page).unwrap().lines() {
            let prose = !line.starts_with('|') && !line.contains("](");
            let length = line.chars().count();
            assert!(!prose || length <= 120, "{}: {line}", page.display());
        }
    }
}

fn program(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .args(args)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn completions_man_pages_and_the_option_reference_have_every_command() {
    let help = program(&["--help"]);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(
        commands.len() >= 15 && commands.contains(&"compress"),
        "{commands:?}"
    );
    let folder = TempDir::new();
    program(&["man", folder.path().join("man").to_str().unwrap()]);
    let reference = program(&["reference"]);
    for command in &commands {
        let page = folder.path().join(format!("man/prefold-{command}.1"));
        assert!(page.exists(), "{command}");
        assert!(
            reference.contains(&format!("\n## prefold {command}\n")),
            "{command}"
        );
    }
    for part in [
        "`-r, --rate SHARE`",
        "PREFOLD_MODEL",
        "## prefold train regen",
        "prefold compress --rate 50%",
    ] {
        assert!(reference.contains(part), "{part}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = program(&["completions", shell]);
        assert!(
            commands.iter().all(|command| script.contains(command)),
            "{shell}"
        );
    }
}
