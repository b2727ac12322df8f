//! Strings that stay whatever they score.

/// Strings that must stay, and the added tokens that stand for those that are not one token, in the order
/// in which they were named.
pub(super) struct Forced<'a> {
    pub strings: &'a [String],
    pub map: Vec<(String, String)>,
}

impl Forced<'_> {
    pub fn maps_to(&self, piece: &str) -> bool {
        self.map.iter().any(|(_, added)| added == piece)
    }

    pub fn has(&self, piece: &str) -> bool {
        self.strings.iter().any(|forced| forced == piece)
    }

    /// A text with its strings in place of the added tokens.
    pub fn restored(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (original, added) in &self.map {
            text = text.replace(added.as_str(), original);
        }
        text
    }
}
