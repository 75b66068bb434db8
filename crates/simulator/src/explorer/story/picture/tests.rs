use super::super::samples::{claimed_twice, data_race, lost_ring, mutual};
use super::*;
use roxmltree::Document;

/// How many elements have this class.
fn count(account: &Account, class: &str) -> usize {
    let text = account.picture();
    let document = Document::parse(&text).expect("well-formed");
    document.descendants().filter(|node| node.attribute("class") == Some(class)).count()
}

#[test]
fn every_message_has_an_arrow_or_a_cross() {
    // The line to the cross, and the cross.
    assert_eq!((count(&lost_ring(), "purple"), count(&lost_ring(), "lost")), (0, 2));
    assert_eq!((count(&claimed_twice(), "purple"), count(&claimed_twice(), "lost")), (1, 0));
    assert_eq!((count(&mutual(), "purple"), count(&mutual(), "lost")), (2, 0));
}

#[test]
fn values_of_other_cpus_have_an_arrow_and_those_of_a_race_a_red_one() {
    assert_eq!((count(&data_race(), "blue"), count(&data_race(), "red")), (1, 1));
    // Rows 3, 4, 5, 8 and 9; rows 10 and 14 only store.
    assert_eq!((count(&claimed_twice(), "blue"), count(&claimed_twice(), "red")), (5, 0));
    let mut buffered = data_race();
    let Deed::Access { buffered: flag, .. } = &mut buffered.lines[2].deed else { panic!("it is a store") };
    *flag = true;
    assert_eq!(count(&buffered, "blue"), 0);
}

#[test]
fn who_waits_in_the_end_points_at_who_could_wake_it() {
    assert_eq!([lost_ring(), mutual(), data_race()].map(|account| count(&account, "amber")), [1, 2, 0]);
}

#[test]
fn all_text_is_on_the_page_and_no_two_pieces_of_text_cover_each_other() {
    for mut account in [lost_ring(), claimed_twice(), data_race(), mutual()] {
        account.title = format!("{} <&\"'>", account.title);
        let text = account.picture();
        let document = Document::parse(&text).expect("well-formed");
        let number = |node: &roxmltree::Node<'_, '_>, name| {
            node.attribute(name).and_then(|value| value.parse::<i32>().ok()).expect("a number")
        };
        let root = document.root_element();
        let (width, height) = (number(&root, "width"), number(&root, "height"));
        let texts = document.descendants().filter(|node| node.has_tag_name("text"));
        let boxes: Vec<[i32; 4]> = texts
            .filter(|node| node.text().is_some_and(|text| !text.is_empty()))
            .map(|node| {
                let (x, y, size) = (number(&node, "x"), number(&node, "y"), number(&node, "font-size"));
                let bold = node.attribute("font-weight") == Some("bold");
                let text = node.text().unwrap_or_default();
                [x, y - size + 2, x + text_width(text, size, bold), y + 2]
            })
            .collect();
        for (index, a) in boxes.iter().enumerate() {
            assert!(a[0] >= 0 && a[1] >= 0 && a[2] <= width && a[3] <= height, "{a:?} {width} {height}");
            for b in &boxes[..index] {
                assert!(a[0] >= b[2] || b[0] >= a[2] || a[1] >= b[3] || b[1] >= a[3], "{a:?} {b:?}");
            }
        }
    }
}
