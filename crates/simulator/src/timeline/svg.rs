//! Writing SVG 1.1: elements, attributes and escaped text; knows nothing of what is drawn.

use core::fmt::{Display, Write};

/// A document that grows by one element after the other.
#[derive(Default)]
pub(crate) struct Svg {
    out: String,
    open: Vec<&'static str>,
}

/// An attribute: its name and value. Values are escaped.
pub(crate) type Attribute<'a> = (&'static str, &'a dyn Display);

impl Svg {
    /// Opens an element that [`close`](Self::close) ends.
    pub(crate) fn open(&mut self, tag: &'static str, attributes: &[Attribute<'_>]) {
        self.start(tag, attributes);
        self.out.push_str(">\n");
        self.open.push(tag);
    }

    /// Ends the innermost open element.
    pub(crate) fn close(&mut self) {
        if let Some(tag) = self.open.pop() {
            self.push(format_args!("</{tag}>\n"));
        }
    }

    /// An element without content.
    pub(crate) fn leaf(&mut self, tag: &'static str, attributes: &[Attribute<'_>]) {
        self.start(tag, attributes);
        self.out.push_str("/>\n");
    }

    /// An element whose only content is text.
    pub(crate) fn text(&mut self, tag: &'static str, attributes: &[Attribute<'_>], text: &str) {
        self.start(tag, attributes);
        self.out.push('>');
        self.escaped(text);
        self.push(format_args!("</{tag}>\n"));
    }

    /// The document; closes what is still open.
    pub(crate) fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.close();
        }
        self.out
    }

    fn start(&mut self, tag: &str, attributes: &[Attribute<'_>]) {
        self.push(format_args!("<{tag}"));
        for (name, value) in attributes {
            self.push(format_args!(" {name}=\""));
            self.escaped(&value.to_string());
            self.out.push('"');
        }
    }

    fn escaped(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                // XML 1.0 has no way to write these, not even escaped.
                '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                    self.out.push('\u{fffd}');
                }
                other => self.out.push(other),
            }
        }
    }

    fn push(&mut self, arguments: core::fmt::Arguments<'_>) {
        // Writing to a `String` cannot fail.
        let _ = self.out.write_fmt(arguments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let mut svg = Svg::default();
        svg.open("svg", &[("class", &"\"><script>")]);
        svg.text("text", &[], "a<b & \u{1}\"c\"");
        let document = svg.finish();
        let parsed = roxmltree::Document::parse(&document).expect("well-formed");
        assert_eq!(parsed.root_element().attribute("class"), Some("\"><script>"));
        let text = parsed.descendants().find(|node| node.has_tag_name("text")).expect("drawn");
        assert_eq!(text.text(), Some("a<b & \u{fffd}\"c\""));
    }
}
