//! `prefold completions`, `prefold man` and the option reference of the documentation: all made from
//! the command line's own definition.

use std::fmt::Write;
use std::path::PathBuf;

use crate::Error;
use clap::{Arg, Command};
use clap_complete::Shell;

use super::failure::Outcome;
use super::files::{write_stdout, write_whole};

/// Prints a completion script for a shell
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the man pages, one for each command
#[derive(clap::Args)]
pub struct ManArgs {
    /// The folder, which is made where it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes the option reference of the documentation, as Markdown
#[derive(clap::Args)]
pub struct ReferenceArgs {
    /// Where it goes [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs `completions`.
pub fn completions(args: CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "prefold", &mut script);
    write_stdout(&String::from_utf8_lossy(&script))
}

/// Runs `man`.
pub fn man(args: ManArgs) -> Outcome {
    std::fs::create_dir_all(&args.folder).map_err(Error::io(&args.folder))?;
    clap_mangen::generate_to(super::command(), &args.folder).map_err(Error::io(&args.folder))?;
    Ok(())
}

/// Runs `reference`.
pub fn reference(args: ReferenceArgs) -> Outcome {
    let mut command = super::command().term_width(0);
    command.build();
    let mut page = String::from(
        "# Option reference\n\nMade from the program itself by `prefold reference`; `prefold COMMAND --help` \
         shows the same.\n",
    );
    for sub in shown(&command) {
        describe(sub, "prefold", &mut page);
    }
    match &args.output {
        Some(path) => write_whole(path, &page),
        None => write_stdout(&page),
    }
}

/// The subcommands that the help lists.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    let listed = |sub: &&Command| !sub.is_hide_set() && sub.get_name() != "help";
    command.get_subcommands().filter(listed)
}

/// Appends a command with its options, then its subcommands.
fn describe(command: &Command, parent: &str, page: &mut String) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(|text| text.to_string()).unwrap_or_default();
    let _ = write!(page, "\n## {name}\n\n{}\n", prose(&about));
    let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let mut groups: Vec<(&str, Vec<&Arg>)> = Vec::new();
    for arg in arguments.filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version")) {
        let heading = match (arg.get_help_heading(), arg.is_positional()) {
            (Some(heading), _) => heading,
            (None, true) => "Arguments",
            (None, false) => "Options",
        };
        match groups.iter_mut().find(|(name, _)| *name == heading) {
            Some((_, args)) => args.push(arg),
            None => groups.push((heading, vec![arg])),
        }
    }
    for (heading, args) in groups {
        let _ = write!(page, "\n**{heading}**\n\n");
        for arg in args {
            let help = arg.get_long_help().or(arg.get_help());
            let help = help.map(|text| text.to_string()).unwrap_or_default();
            let _ = writeln!(
                page,
                "- `{}`: {}{}",
                usage(arg),
                prose(&help),
                facts(arg, &help)
            );
        }
    }
    if let Some(examples) = command.get_after_help() {
        let text = examples.to_string();
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim_start).collect();
        let _ = write!(page, "\n```sh\n{}\n```\n", lines.join("\n"));
    }
    for sub in shown(command) {
        describe(sub, &name, page);
    }
}

/// How an argument is written.
fn usage(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let value = names
        .iter()
        .map(|name| name.to_string())
        .collect::<Vec<_>>()
        .join(" ");
    let takes = arg.get_action().takes_values();
    let flag = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, None) => return value,
    };
    if takes {
        format!("{flag} {value}")
    } else {
        flag
    }
}

/// Its default, its values and its variable, where the text does not say them.
fn facts(arg: &Arg, help: &str) -> String {
    let mut facts = String::new();
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if arg.get_action().takes_values() && !values.is_empty() {
        let _ = write!(facts, " Values: {}.", values.join(", "));
    }
    let defaults = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy());
    let defaults = defaults.collect::<Vec<_>>().join(",");
    if arg.get_action().takes_values() && !defaults.is_empty() && !help.contains("[default") {
        let _ = write!(facts, " Default: `{}`.", defaults.replace('\n', "\\n"));
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(facts, " Variable: `{}`.", variable.to_string_lossy());
    }
    facts
}

/// Help as Markdown: its paragraphs, with nothing outside of code taken for a tag or a mark, and a full
/// stop at the end.
fn prose(help: &str) -> String {
    let parts = help
        .trim()
        .split('`')
        .enumerate()
        .map(|(at, part)| match at % 2 {
            0 => part
                .replace('<', "&lt;")
                .replace('*', "\\*")
                .replace("[default", "\\[default"),
            _ => part.to_owned(),
        });
    let text = parts.collect::<Vec<_>>().join("`");
    match text.ends_with(['.', ']', ':']) || text.is_empty() {
        true => text,
        false => text + ".",
    }
}
