//! The parts of a conversation, from the bodies that OpenAI's and Anthropic's interfaces take.
//!
//! One reader for chat completions, responses and messages: their names do not contradict each other,
//! and what it does not know is a part of another kind, which is never touched.

use std::collections::HashMap;

use serde::Serialize;

use crate::hard::json_text::Tree;
use crate::hard::json_text::tree::Kind;

/// Who a message is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Anthropic's `system`, OpenAI's `instructions`, and messages of that role.
    System,
    /// OpenAI's second name for it.
    Developer,
    /// The person, or the program that stands for one.
    User,
    /// The model.
    Assistant,
    /// What a tool returned.
    Tool,
    /// A role that is not known.
    Other,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// What its author says.
    Text,
    /// A document of plain text, or a search result.
    Document,
    /// The arguments of a call.
    ToolCall,
    /// The text of a call's result.
    ToolResult,
    /// The model's reasoning.
    Thinking,
    /// Images, audio, files, encrypted blocks, and what is not known.
    Other,
}

/// A part of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    /// The string that holds its text; none for an image and its like.
    pub text: Option<usize>,
    /// Index of its message or item; none for the system prompt beside the messages.
    pub message: Option<usize>,
    /// Index in the content of its message, where that is a list.
    pub block: Option<usize>,
    pub role: Role,
    pub content: Content,
    /// The call that a result answers, in a line.
    pub call: Option<String>,
    /// Whether it carries a `cache_control`.
    pub cached: bool,
    /// Whether it must not change for a reason of its own.
    pub fixed: Option<Fixed>,
}

/// Why a part must not change, whatever its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fixed {
    /// Something points into its text by numbers of characters.
    Annotated,
    /// The call failed: the message is short and the model needs all of it.
    Failed,
}

/// A conversation taken apart.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// In the order in which the model reads them.
    pub parts: Vec<Part>,
    /// Whether the body asks for everything to be cached.
    pub all_cached: bool,
}

impl Conversation {
    /// Takes a body apart: an object with `messages`, `input` or `prompt`, or the list alone. None where
    /// it has none of them.
    pub fn read(tree: &Tree) -> Option<Self> {
        let mut reader = Reader {
            tree,
            calls: HashMap::new(),
            conversation: Conversation::default(),
        };
        let list = match tree.nodes[0].kind {
            Kind::Array => 0,
            _ => {
                reader.conversation.all_cached = reader.cached(0);
                for name in ["system", "instructions"] {
                    if let Some(content) = tree.member(0, name) {
                        reader.content(content, &Part::new(None, Role::System));
                    }
                }
                let names = ["messages", "input", "prompt"];
                names.into_iter().find_map(|name| tree.member(0, name))?
            }
        };
        match tree.nodes[list].kind {
            Kind::Array => {
                for (index, item) in tree.items(list).enumerate() {
                    reader.item(item, index);
                }
            }
            // The input of the responses interface may be the user's text alone; a prompt of the
            // completions interface is.
            Kind::String => reader.content(list, &Part::new(Some(0), Role::User)),
            _ => return None,
        }
        Some(reader.conversation)
    }
}

impl Part {
    /// A place for texts: a part without one.
    fn new(message: Option<usize>, role: Role) -> Self {
        Part {
            text: None,
            message,
            block: None,
            role,
            content: Content::Text,
            call: None,
            cached: false,
            fixed: None,
        }
    }
}

struct Reader<'a> {
    tree: &'a Tree<'a>,
    /// By id what was called, with its arguments.
    calls: HashMap<String, String>,
    conversation: Conversation,
}

impl Reader<'_> {
    /// A message, or an item of the responses interface.
    fn item(&mut self, item: usize, index: usize) {
        let role = match self.word(item, "role").as_deref() {
            Some("system") => Role::System,
            Some("developer") => Role::Developer,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("tool" | "function") => Role::Tool,
            Some(_) => Role::Other,
            None => Role::Assistant,
        };
        let mut place = Part::new(Some(index), role);
        place.cached = self.cached(item);
        if self.word(item, "role").is_none() {
            return self.block(item, &place);
        }
        if role == Role::Tool {
            place.content = Content::ToolResult;
            place.call = self.call_of(item, &["tool_call_id"]);
            if place.call.is_none() {
                place.call = self.word(item, "name");
            }
        }
        for name in ["reasoning_content", "reasoning"] {
            if let Some(text) = self.tree.member(item, name) {
                let content = Content::Thinking;
                self.push(
                    Some(text),
                    &Part {
                        content,
                        ..place.clone()
                    },
                );
            }
        }
        if let Some(content) = self.tree.member(item, "content") {
            self.content(content, &place);
        }
        if let Some(calls) = self.tree.member(item, "tool_calls") {
            for call in self.tree.items(calls) {
                self.call(call, &place);
            }
        }
        if let Some(call) = self.tree.member(item, "function_call") {
            self.call(call, &place);
        }
    }

    /// The content of a message or of a result: a text, or a list of blocks.
    fn content(&mut self, content: usize, place: &Part) {
        match self.tree.nodes[content].kind {
            Kind::String => self.push(Some(content), place),
            Kind::Array => {
                for (index, block) in self.tree.items(content).enumerate() {
                    let block_index = place.block.or(Some(index));
                    let cached = place.cached || self.cached(block);
                    let place = Part {
                        block: block_index,
                        cached,
                        ..place.clone()
                    };
                    self.block(block, &place);
                }
            }
            _ => {}
        }
    }

    /// A block of a content, or an item of the responses interface that is not a message.
    fn block(&mut self, block: usize, place: &Part) {
        let kind = self.word(block, "type").unwrap_or_default();
        let mut place = place.clone();
        let member = |name: &str| self.tree.member(block, name);
        match kind.as_str() {
            "text" | "input_text" | "output_text" => {
                let points = ["annotations", "citations"].into_iter().filter_map(member);
                if points
                    .flat_map(|list| self.tree.items(list))
                    .next()
                    .is_some()
                {
                    place.fixed = Some(Fixed::Annotated);
                }
                self.push(member("text"), &place);
            }
            "tool_result"
            | "function_call_output"
            | "custom_tool_call_output"
            | "mcp_tool_result"
            | "local_shell_call_output" => {
                place.call = self.call_of(block, &["tool_use_id", "call_id", "id"]);
                place.content = Content::ToolResult;
                place.role = Role::Tool;
                if member("is_error").is_some_and(|flag| self.tree.raw(flag) == "true") {
                    place.fixed = Some(Fixed::Failed);
                }
                if let Some(content) = member("content").or(member("output")) {
                    self.content(content, &place);
                }
            }
            "document" => {
                place.content = Content::Document;
                if member("citations").is_some_and(|c| self.tree.raw(c).contains("true")) {
                    place.fixed = Some(Fixed::Annotated);
                }
                let source = member("source");
                let inside = |name: &str| self.tree.member(source?, name);
                match source
                    .and_then(|source| self.word(source, "type"))
                    .as_deref()
                {
                    Some("text") => self.push(inside("data"), &place),
                    Some("content") => match inside("content") {
                        Some(content) => self.content(content, &place),
                        None => self.push(None, &place),
                    },
                    _ => self.other(&place),
                }
            }
            "search_result" => {
                place.content = Content::Document;
                match member("content") {
                    Some(content) => self.content(content, &place),
                    None => self.other(&place),
                }
            }
            "thinking" => {
                place.content = Content::Thinking;
                self.push(member("thinking"), &place);
            }
            "reasoning" => {
                place.content = Content::Thinking;
                self.push(None, &place);
            }
            "tool_use" | "server_tool_use" | "mcp_tool_use" | "function_call"
            | "custom_tool_call" => self.call(block, &place),
            _ => self.other(&place),
        }
    }

    /// A call of a tool, in any of its forms.
    fn call(&mut self, call: usize, place: &Part) {
        let function = self.tree.member(call, "function").unwrap_or(call);
        let name = self.word(function, "name").unwrap_or_default();
        let arguments = ["arguments", "input"]
            .into_iter()
            .find_map(|name| self.tree.member(function, name));
        let text = arguments.map(|node| match self.tree.string(node) {
            Some(text) => text.into_owned(),
            None => self.tree.raw(node).to_string(),
        });
        let line = [name, text.unwrap_or_default()].join(" ");
        for name in ["call_id", "id"] {
            if let Some(id) = self.word(call, name) {
                self.calls.insert(id, line.trim().to_string());
            }
        }
        let place = Part {
            content: Content::ToolCall,
            ..place.clone()
        };
        self.push(arguments, &place);
    }

    /// What is called by the id that a result names.
    fn call_of(&self, result: usize, names: &[&str]) -> Option<String> {
        let mut ids = names.iter().filter_map(|name| self.word(result, name));
        ids.find_map(|id| self.calls.get(&id).cloned())
    }

    fn other(&mut self, place: &Part) {
        let content = Content::Other;
        self.push(
            None,
            &Part {
                content,
                ..place.clone()
            },
        );
    }

    fn push(&mut self, text: Option<usize>, place: &Part) {
        let place = place.clone();
        self.conversation.parts.push(Part { text, ..place });
    }

    /// The string under a name.
    fn word(&self, object: usize, name: &str) -> Option<String> {
        let member = self.tree.member(object, name)?;
        Some(self.tree.string(member)?.into_owned())
    }

    /// Whether an object carries a cache marker.
    fn cached(&self, object: usize) -> bool {
        let marker = self.tree.member(object, "cache_control");
        marker.is_some_and(|marker| self.tree.raw(marker) != "null")
    }
}
