//! The Model Context Protocol over standard input and output.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{common, document};

#[test]
fn an_agent_compresses_and_takes_back() {
    let Some(model) = common::smollm2() else {
        return;
    };
    let mut program = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .args(["mcp", "--device", "cpu", "--model"])
        .arg(model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = program.stdin.take().unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut call = |id: u64, method: &str, params: Value| -> Value {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        writeln!(input, "{call}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["id"], id, "{answer}");
        if method == "initialize" {
            writeln!(
                input,
                "{}",
                json!({"jsonrpc": "2.0", "method": "notifications/initialized"})
            )
            .unwrap();
        }
        answer
    };
    let client = json!({"protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"}});
    let hello = call(1, "initialize", client);
    assert_eq!(hello["result"]["serverInfo"]["name"], "prefold");
    let tools = call(2, "tools/list", json!({}));
    let names: Vec<&str> = tools["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|t| t["name"].as_str())
        .collect();
    assert_eq!(names, ["compress", "retrieve", "stats"]);
    let text = document(3);
    let arguments = json!({"text": text, "question": "Who painted the wall?", "rate": 0.3});
    let short = call(
        3,
        "tools/call",
        json!({"name": "compress", "arguments": arguments}),
    );
    let short = &short["result"]["structuredContent"];
    let (before, after) = (
        short["tokens_before"].as_u64().unwrap(),
        short["tokens_after"].as_u64().unwrap(),
    );
    assert!(
        after > 0 && after * 10 <= before * 3 + 10,
        "{after} of {before}"
    );
    let arguments = json!({"hash": short["hash"]});
    let original = call(
        4,
        "tools/call",
        json!({"name": "retrieve", "arguments": arguments}),
    );
    assert_eq!(original["result"]["content"][0]["text"], text);
    let unknown = call(
        5,
        "tools/call",
        json!({"name": "retrieve", "arguments": {"hash": "x"}}),
    );
    assert_eq!(unknown["result"]["isError"], true);
    let wrong = call(
        6,
        "tools/call",
        json!({"name": "compress", "arguments": {"text": "a", "rat": 1}}),
    );
    assert!(
        wrong["error"]["message"].as_str().unwrap().contains("rat"),
        "{wrong}"
    );
    let stats = call(7, "tools/call", json!({"name": "stats", "arguments": {}}));
    assert_eq!(
        stats["result"]["structuredContent"]["tokens_saved"],
        before - after
    );
    drop(input);
    assert!(program.wait().unwrap().success());
}
