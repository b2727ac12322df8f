//! Three examples at the end of every command's help.

use clap::Command;

/// The path of a command, and its examples.
const EXAMPLES: [(&str, [&str; 3]); 33] = [
    (
        "compress",
        [
            "prefold compress --rate 50% report.txt",
            "prefold compress -q 'Who owns the value?' -t 300 chapter-*.txt > prompt.txt",
            "prefold compress --show --html report.html report.txt",
        ],
    ),
    (
        "score",
        [
            "prefold score report.txt",
            "prefold score --json report.txt | jq .perplexity",
            "git log | prefold score -",
        ],
    ),
    (
        "batch",
        [
            "prefold batch cases.jsonl > answers.jsonl",
            "prefold batch --device cuda cases.jsonl | jq -r .result.compressed_prompt",
            "tail -f queue.jsonl | prefold batch -",
        ],
    ),
    (
        "encode",
        [
            "prefold encode report.txt -o report.safetensors",
            "prefold encode --adapter nested --memory-tokens 4 report.txt -o report.safetensors",
            "prefold encode --output-dir prefixes notes/*.txt",
        ],
    ),
    (
        "prefill",
        [
            "prefold prefill report.txt -o report.safetensors",
            "prefold prefill --keep 60% report.txt -o report.safetensors",
            "prefold compress report.txt | prefold prefill - -o report.safetensors",
        ],
    ),
    (
        "generate",
        [
            "prefold generate --prompt 'Once upon a time' -n 40",
            "prefold generate --prefix report.safetensors --prompt 'Question: who pays?'",
            "prefold generate --prefix report.safetensors --json | jq -r .text",
        ],
    ),
    (
        "inspect",
        [
            "prefold inspect report.safetensors",
            "prefold inspect model.gguf",
            "prefold inspect --json report.safetensors | jq -r .content_id",
        ],
    ),
    (
        "export",
        [
            "prefold export --to llama.cpp report.safetensors -o slots/report.bin",
            "prefold export --to llama.cpp --template saved.bin report.safetensors -o slots/report.bin",
            "prefold export --to vllm report.safetensors -o prefixes/report.safetensors",
        ],
    ),
    (
        "eval qa",
        [
            "prefold eval qa --data questions.jsonl",
            "prefold eval qa --data questions.jsonl --host host.gguf --rates 50%,25% --reference",
            "prefold eval qa --data questions.jsonl --log answers.jsonl --json report.json",
        ],
    ),
    (
        "eval regen",
        [
            "prefold eval regen --data texts.jsonl --adapter trained",
            "prefold eval regen --data texts.jsonl --adapter trained --text-tokens 96",
            "prefold eval regen --data texts.jsonl --limit 100 --json report.json",
        ],
    ),
    (
        "train regen",
        [
            "prefold train regen --data corpus.jsonl.xz --steps 20000 --out pretrained",
            "prefold train regen --data corpus.jsonl.xz --steps 20000 --out pretrained --resume",
            "prefold train regen --nested --data a.jsonl b.jsonl --eval dev.jsonl --steps 5000 --out nested",
        ],
    ),
    (
        "train qa",
        [
            "prefold train qa --adapter pretrained --data qa.jsonl --steps 2000 --out tuned",
            "prefold train qa --adapter pretrained --data qa.jsonl --steps 2000 --out tuned --resume",
            "prefold train qa --data qa.jsonl --eval dev.jsonl --steps 2000 --out tuned",
        ],
    ),
    (
        "train align",
        [
            "prefold train align --data pairs.jsonl --steps 1000 --out aligned",
            "prefold train align --data pairs.jsonl --steps 1000 --out aligned --resume",
            "prefold train align --data pairs.jsonl --rank 16 --steps 1000 --out aligned",
        ],
    ),
    (
        "train prefix",
        [
            "prefold train prefix --corpus manual.txt --steps 500 --out manual",
            "prefold train prefix --corpus manual.txt --tokens 128 --questions 1000 --steps 2000 --out manual",
            "prefold train prefix --corpus a.txt b.txt --data qa.jsonl --steps 500 --out ab --resume",
        ],
    ),
    (
        "train rank",
        [
            "prefold train rank --data questions.jsonl --out ranker.txt",
            "prefold train rank --data questions.jsonl --corpus texts.jsonl.xz --out ranker.txt",
            "prefold train rank --data questions.jsonl --hold-out 10 --out ranker.txt",
        ],
    ),
    (
        "train tokens",
        [
            "prefold train tokens --model minilm --data meetings.jsonl --out keeper",
            "prefold train tokens --model minilm --data questions.jsonl --hold-out 5 --out keeper --json",
            "prefold train tokens --model minilm --data rows.jsonl --tokens 50000 --epochs 3 --out quick",
        ],
    ),
    (
        "eval rank",
        [
            "prefold eval rank --data questions.jsonl",
            "prefold eval rank --data questions.jsonl --ranker ranker.txt --every 10",
            "prefold eval rank --data questions.jsonl --rates 0.1,0.25 --json recall.json",
        ],
    ),
    (
        "import",
        [
            "prefold import --task qa mistral_7b_ft_icae.safetensors -o icae-qa",
            "prefold import --task regen mistral_7b_pretrained_icae.safetensors -o icae",
            "prefold import --task qa --decoder-begin '[1]' --alpha 64 own.safetensors -o own-icae",
        ],
    ),
    (
        "merge",
        [
            "prefold merge --adapter aligned -o aligned-model",
            "prefold merge --adapter aligned --dtype bf16 -o aligned-model",
            "prefold merge --model model.gguf --adapter aligned -o aligned-model",
        ],
    ),
    (
        "plot",
        [
            "prefold plot pretrained.log.jsonl > curve.svg",
            "prefold plot pretrained.log.jsonl tuned.log.jsonl -o curves.svg",
            "prefold plot --axis seconds pretrained.log.jsonl -o curve.svg",
        ],
    ),
    (
        "models list",
        [
            "prefold models list",
            "prefold models list --json",
            "prefold models list --json | jq -r '.[].name'",
        ],
    ),
    (
        "prefixes",
        [
            "prefold prefixes push report.safetensors --store /mnt/prefixes",
            "prefold prefixes ls --store s3://bucket/prefixes",
            "prefold prefixes load report.safetensors --to http://localhost:8080 --slot-folder slots",
        ],
    ),
    (
        "prefixes push",
        [
            "prefold prefixes push report.safetensors --store /mnt/prefixes",
            "prefold prefixes push *.safetensors --store s3://bucket/prefixes",
            "prefold prefixes push report.safetensors --store redis://cache/0 --json | jq .[0].tokens",
        ],
    ),
    (
        "prefixes pull",
        [
            "prefold prefixes pull 3f9a1c20 --store /mnt/prefixes",
            "prefold prefixes pull 3f9a1c20 --store s3://bucket/prefixes -o report.safetensors",
            "prefold prefixes pull 3f9a1c20 --store redis://cache/0 | xargs prefold inspect",
        ],
    ),
    (
        "prefixes ls",
        [
            "prefold prefixes ls",
            "prefold prefixes ls --store s3://bucket/prefixes",
            "prefold prefixes ls --store /mnt/prefixes --json | jq -r .[].name",
        ],
    ),
    (
        "prefixes rm",
        [
            "prefold prefixes rm 3f9a1c20",
            "prefold prefixes rm 3f9a1c20 b2c4 --store /mnt/prefixes",
            "prefold prefixes rm 3f9a1c20 --store s3://bucket/prefixes --json",
        ],
    ),
    (
        "prefixes gc",
        [
            "prefold prefixes gc --keep 10G",
            "prefold prefixes gc --older-than 30d --store s3://bucket/prefixes",
            "prefold prefixes gc --fingerprint $OLD --dry-run --store /mnt/prefixes",
        ],
    ),
    (
        "prefixes load",
        [
            "prefold prefixes load report.safetensors --to http://localhost:8080 --slot-folder slots",
            "prefold prefixes load 3f9a1c20 --to http://localhost:8080 --slot 1 --slot-folder slots",
            "prefold prefixes load r.safetensors --to http://gpu:8080 --slot-folder slots | jq .tokens",
        ],
    ),
    (
        "models pull",
        [
            "prefold models pull",
            "prefold models pull qwen2.5-coder-0.5b",
            "prefold models pull Qwen/Qwen3-0.6B-GGUF:Q8_0",
        ],
    ),
    (
        "models path",
        [
            "prefold models path",
            "prefold models path qwen2.5-coder-0.5b",
            "llama-server -m $(prefold models path)",
        ],
    ),
    (
        "models rm",
        [
            "prefold models rm smollm2-135m",
            "prefold models rm Qwen/Qwen3-0.6B-GGUF:Q8_0",
            "prefold models rm Qwen/Qwen3-0.6B-GGUF",
        ],
    ),
    (
        "completions",
        [
            "prefold completions bash > ~/.local/share/bash-completion/completions/prefold",
            "prefold completions zsh > ~/.zfunc/_prefold",
            "prefold completions fish > ~/.config/fish/completions/prefold.fish",
        ],
    ),
    (
        "man",
        [
            "prefold man ~/.local/share/man/man1",
            "prefold man man && man -l man/prefold-compress.1",
            "sudo prefold man /usr/local/share/man/man1",
        ],
    ),
];

/// Those of the server, which a build may be without.
#[cfg(feature = "serve")]
const SERVE: &[(&str, [&str; 3])] = &[
    (
        "serve",
        [
            "prefold serve",
            "prefold serve --upstream https://api.openai.com --rate 0.4",
            "prefold serve --listen 0.0.0.0:8780 --token-file token --cache redis://redis:6379",
        ],
    ),
    #[cfg(feature = "mcp")]
    (
        "mcp",
        [
            "prefold mcp",
            "prefold mcp --rate 0.3 --device cpu",
            "prefold mcp --retrieve-ttl 24h",
        ],
    ),
];
#[cfg(not(feature = "serve"))]
const SERVE: &[(&str, [&str; 3])] = &[];

/// Adds the examples to the commands that they are of.
pub fn add(mut command: Command) -> Command {
    for &(path, lines) in EXAMPLES.iter().chain(SERVE) {
        let text = format!("Examples:\n  {}", lines.join("\n  "));
        command = at(command, path, &text);
    }
    command
}

fn at(command: Command, path: &str, text: &str) -> Command {
    let (first, rest) = match path.split_once(' ') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    command.mut_subcommand(first, |sub| match rest {
        Some(rest) => at(sub, rest, text),
        None => sub.after_help(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    /// Every command that the help lists and that has no commands of its own, with its name.
    fn leaves(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        let listed: Vec<&Command> = command
            .get_subcommands()
            .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
            .collect();
        if listed.is_empty() {
            found.push((name.trim().into(), command.clone()));
        }
        for sub in listed {
            leaves(sub, &format!("{name} {}", sub.get_name()), found);
        }
    }

    fn all() -> Vec<(String, Command)> {
        let mut found = Vec::new();
        let mut command = super::super::command();
        command.build();
        leaves(&command, "", &mut found);
        found
    }

    #[test]
    fn every_command_ends_with_three_examples_of_its_own_that_parse() {
        for (name, command) in all() {
            let help = command.clone().render_long_help().to_string();
            let examples = help
                .split_once("Examples:\n")
                .unwrap_or_else(|| panic!("{name}: no examples"))
                .1;
            let lines: Vec<&str> = examples.lines().map(str::trim).collect();
            assert_eq!(lines.len(), 3, "{name}");
            for line in lines {
                let own = line
                    .split(['|', '>', '&'])
                    .find(|part| part.contains(&format!("prefold {name}")));
                let own = own.unwrap_or_else(|| panic!("{name}: {line}"));
                let own = &own[own.find("prefold ").unwrap()..];
                let words: Vec<&str> = own
                    .trim()
                    .trim_end_matches(')')
                    .split_whitespace()
                    .collect();
                // Quoted words stay one.
                let mut joined: Vec<String> = Vec::new();
                let mut open = false;
                for word in words {
                    match open {
                        true => {
                            let last = joined.last_mut().unwrap();
                            *last = format!("{last} {word}");
                        }
                        false => joined.push(word.into()),
                    }
                    open ^= word.matches('\'').count() % 2 == 1;
                }
                if let Err(error) = super::super::command().try_get_matches_from(joined) {
                    panic!("{line}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_help_of_every_option_shows_what_holds_without_it() {
        // What is simply absent by default.
        const ABSENT: &[&str] = &[
            "corpus",
            "hold-out",
            "messages",
            "question",
            "instruction",
            "output",
            "output-dir",
            "html",
            "adapter",
            "target-token",
            "force-token",
            "force-context-ids",
            "force-context-number",
            "rank-method",
            "reorder-context",
            "text",
            "ids",
            "keep",
            "older-than",
            "fingerprint",
            "api-key",
            "slot-folder",
            "prefix",
            "prompt",
            "prompt-ids",
            "template",
            "to",
            "icae",
            "pooled",
            "json",
            "log",
            "data",
            "eval",
            "out",
            "steps",
            "task",
            "init",
            "dtype",
            "k-rope",
            "color",
            "config",
            "token-file",
            "upstream",
            "encoder",
            "classifier",
            "cosines",
            "probability-threshold",
        ];
        for (name, command) in all() {
            let silent = |arg: &&Arg| {
                arg.get_action().takes_values()
                    && !arg.is_positional()
                    && arg.get_default_values().is_empty()
                    && !arg
                        .get_help()
                        .is_some_and(|help| help.to_string().contains("[default"))
            };
            for arg in command.get_arguments().filter(silent) {
                let long = arg.get_long().unwrap_or_default();
                assert!(ABSENT.contains(&long), "{name} --{long} shows no default");
            }
        }
    }
}
