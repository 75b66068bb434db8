//! Where text may stand: labels never cover each other or anything that is marked as taken.

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) width: i32,
    pub(super) height: i32,
}

impl Rect {
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.x < other.x + other.width
            && other.x < self.x + self.width
            && self.y < other.y + other.height
            && other.y < self.y + self.height
    }

    fn contains(&self, other: &Self) -> bool {
        other.x >= self.x
            && other.y >= self.y
            && other.x + other.width <= self.x + self.width
            && other.y + other.height <= self.y + self.height
    }
}

/// The width in pixels that `text` needs at most, in the wide sans-serif fonts that are common; others need less.
pub(crate) fn text_width(text: &str, size: i32, bold: bool) -> i32 {
    let per_mille: i32 = text
        .chars()
        .map(|character| match character {
            'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' => 360,
            'm' | 'w' | 'M' | 'W' | '%' | '@' | '\u{2192}' => 1000,
            'A'..='Z' => 740,
            character if character.is_ascii() => 640,
            _ => 800,
        })
        .sum();
    let bolder = if bold { 112 } else { 100 };
    (per_mille * size / 1000) * bolder / 100 + 2
}

/// The style of a label.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) size: i32,
    pub(super) bold: bool,
    pub(super) ink: &'static str,
    pub(super) paper: &'static str,
    pub(super) border: &'static str,
}

/// A label that found its place.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) rect: Rect,
    pub(super) text: String,
    pub(super) style: Style,
}

/// Finds places for labels, first come, first served.
pub(super) struct Placer {
    bounds: Rect,
    taken: Vec<Rect>,
    pub(super) labels: Vec<Label>,
    /// How many labels found no place.
    pub(super) homeless: usize,
}

impl Placer {
    pub(super) fn new(bounds: Rect) -> Self {
        Self { bounds, taken: Vec::new(), labels: Vec::new(), homeless: 0 }
    }

    /// Keeps labels away from `rect`.
    pub(super) fn reserve(&mut self, rect: Rect) {
        self.taken.push(rect);
    }

    /// Places a label beside the point `(x, y)`, `aside` pixels from it, rather to the right than to the left, or
    /// the other way round if `aside` is negative: the longest of `texts` that fits, as near as possible. `reach` is how many lines up or down it may go.
    pub(super) fn beside(&mut self, x: i32, y: i32, aside: i32, reach: i32, texts: &[String], style: Style) {
        for text in texts {
            let width = text_width(text, style.size, style.bold) + 6;
            let height = style.size + 5;
            for step in 0..=2 * reach {
                let line = if step % 2 == 0 { step / 2 } else { -(step + 1) / 2 };
                let top = y - height / 2 + line * (height / 2 + 1);
                let sides = [x + aside.abs(), x - aside.abs() - width];
                for left in if aside < 0 { [sides[1], sides[0]] } else { sides } {
                    if self.put(Rect { x: left, y: top, width, height }, text, style) {
                        return;
                    }
                }
            }
        }
        self.homeless += 1;
    }

    /// Places a label in the middle of `x`, at `y` or as near below or above as possible.
    pub(super) fn centred(&mut self, x: i32, y: i32, reach: i32, text: &str, style: Style) {
        let (width, height) = (text_width(text, style.size, style.bold) + 8, style.size + 5);
        let farthest = self.bounds.x.max(self.bounds.x + self.bounds.width - width);
        let left = (x - width / 2).clamp(self.bounds.x, farthest);
        for step in 0..=2 * reach {
            let line = if step % 2 == 0 { step / 2 } else { -(step + 1) / 2 };
            if self.put(Rect { x: left, y: y + line * (height / 2), width, height }, text, style) {
                return;
            }
        }
        self.homeless += 1;
    }

    fn put(&mut self, rect: Rect, text: &str, style: Style) -> bool {
        if !self.bounds.contains(&rect) || self.taken.iter().any(|taken| taken.overlaps(&rect)) {
            return false;
        }
        self.taken.push(rect);
        self.labels.push(Label { rect, text: text.to_owned(), style });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style = Style { size: 11, bold: false, ink: "#000", paper: "#fff", border: "none" };

    #[test]
    fn labels_for_one_point_do_not_cover_each_other_and_what_has_no_room_is_counted() {
        let mut placer = Placer::new(Rect { x: 0, y: 0, width: 200, height: 60 });
        for _ in 0..20 {
            placer.beside(100, 30, 6, 4, &["twelve chars".into()], STYLE);
        }
        assert!(placer.labels.len() >= 4);
        assert_eq!(placer.labels.len() + placer.homeless, 20);
        for (index, label) in placer.labels.iter().enumerate() {
            assert!(placer.labels[..index].iter().all(|other| !other.rect.overlaps(&label.rect)));
        }
    }

    #[test]
    fn a_label_takes_its_short_form_where_the_long_one_does_not_fit() {
        let mut placer = Placer::new(Rect { x: 0, y: 0, width: 80, height: 40 });
        placer.beside(10, 20, 6, 0, &["much too long for this place".into(), "short".into()], STYLE);
        assert_eq!(placer.labels[0].text, "short");
    }
}
