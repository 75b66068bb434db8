//! Which protocols there are, by the names that people give them.

use std::fmt::Write;

use serde::Serialize;
use smpcall_simulator::explorer::{Protocol, protocols};

use crate::failure::Failure;

/// Protocols with a number in their name, which counts the senders to one target.
const FAMILIES: [&str; 2] = ["ok", "irq"];

/// A name that is this far from another one is meant to be it: the edits of a slip or two.
const NEAR: usize = 3;

/// The protocol that is meant, on as many CPUs as are wanted.
pub(super) fn find(name: &str, cpus: Option<usize>) -> Result<Protocol, Failure> {
    let Some((family, senders)) = family(name) else {
        let protocol = protocols::by_name(name).ok_or_else(|| unknown(name))?;
        return match cpus {
            Some(cpus) if cpus != protocol.cpus => {
                Err(Failure::usage(format!("{name} has {} CPUs; leave off --cpus {cpus}", protocol.cpus)))
            }
            _ => Ok(protocol),
        };
    };
    let senders = match (senders, cpus) {
        (Some(senders), Some(cpus)) if cpus != senders.saturating_add(1) => {
            let of = senders.saturating_add(1);
            return Err(Failure::usage(format!("{name} has {of} CPUs; write {family} --cpus {cpus}")));
        }
        (Some(senders), _) => senders,
        (None, Some(cpus)) => cpus.saturating_sub(1),
        (None, None) => 2,
    };
    protocols::by_name(&format!("{family}{senders}")).ok_or_else(|| {
        let most = largest(family);
        Failure::usage(format!(
            "{family} has 1 to {most} senders and a target: {family}1 to {family}{most}, or --cpus 2 to {}",
            most + 1
        ))
    })
}

/// The family of a name, and its number if the name has one: `ok3`, `okN` or `ok`.
fn family(name: &str) -> Option<(&'static str, Option<usize>)> {
    FAMILIES.into_iter().find_map(|family| {
        let number = name.strip_prefix(family)?;
        match number {
            "" | "N" => Some((family, None)),
            // A number that is too big for anything is too big for this too.
            _ if number.bytes().all(|digit| digit.is_ascii_digit()) => {
                Some((family, Some(number.parse().unwrap_or(usize::MAX))))
            }
            _ => None,
        }
    })
}

/// The largest number in a family.
fn largest(family: &str) -> usize {
    let exists = |senders: &usize| protocols::by_name(&format!("{family}{senders}")).is_some();
    (1..=usize::from(u16::MAX)).take_while(exists).last().unwrap_or(0)
}

fn unknown(name: &str) -> Failure {
    let mut names: Vec<(usize, String)> = protocols::all()
        .into_iter()
        .map(|protocol| (distance(name, &protocol.name), protocol.name))
        .collect();
    names.sort();
    let near: Vec<&str> = names
        .iter()
        .filter(|(distance, known)| *distance <= NEAR.min(1 + known.len() / 2) || known.starts_with(name))
        .map(|(_, known)| known.as_str())
        .take(3)
        .collect();
    let hint = if near.is_empty() { String::new() } else { format!("did you mean {}? ", near.join(" or ")) };
    Failure::usage(format!("there is no protocol {name:?}; {hint}`smpcall explore` lists them"))
}

/// How many characters have to be put in, taken out or replaced.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (taken, character) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = taken + 1;
        for (index, &wanted) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(character != wanted);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[other.len()]
}

/// A protocol in the list. The names and their order are what scripts rely on.
#[derive(Serialize)]
struct Entry {
    protocol: String,
    cpus: usize,
    most_cpus: usize,
    drops: u32,
    expiries: u32,
    ticks: u32,
    wedges: u32,
    broken: bool,
    about: String,
}

fn entries() -> Vec<Entry> {
    let entry = |protocol: Protocol| {
        let most = match family(&protocol.name) {
            Some((family, _)) => largest(family) + 1,
            None => protocol.cpus,
        };
        let bounds = protocol.bounds;
        Entry {
            protocol: protocol.name,
            cpus: protocol.cpus,
            most_cpus: most,
            drops: bounds.drops,
            expiries: bounds.expiries,
            ticks: bounds.ticks,
            wedges: bounds.wedges,
            broken: protocol.broken,
            about: protocol.about,
        }
    };
    protocols::all().into_iter().map(entry).collect()
}

/// All protocols, for scripts.
pub(super) fn json() -> String {
    // No map with keys that are not text, no number that JSON has not: it cannot fail.
    serde_json::to_string_pretty(&entries()).unwrap_or_default() + "\n"
}

/// All protocols, for people.
pub(super) fn prose() -> String {
    let entries = entries();
    let width = entries.iter().map(|entry| entry.protocol.len()).max().unwrap_or(0);
    let mut out = format!("{:<width$}  CPUs  drops  expiries  about\n", "protocol");
    for entry in &entries {
        let about = &entry.about;
        let broken = if entry.broken { "broken on purpose: " } else { "" };
        // Writing to a `String` cannot fail, here and below.
        let _ = writeln!(
            out,
            "{:<width$}  {:>4}  {:>5}  {:>8}  {broken}{about}",
            entry.protocol, entry.cpus, entry.drops, entry.expiries
        );
    }
    for family in FAMILIES {
        let most = largest(family);
        let _ = write!(out, "\n{family}N: 1 to {most} senders, {family}1 to {family}{most}");
    }
    out.push_str("\nsmpcall explore PROTOCOL explores one, smpcall explore --all all of them.\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, cpus: Option<usize>) -> String {
        match find(name, cpus).map(|protocol| protocol.name).expect_err("is refused") {
            Failure::Usage(sentence) => sentence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn families_have_as_many_cpus_as_are_wanted() {
        let name = |name, cpus| find(name, cpus).expect("is known").name;
        assert_eq!(name("ok", Some(4)), "ok3");
        assert_eq!(name("okN", None), "ok2");
        assert_eq!(name("irq3", Some(4)), "irq3");
        assert!(refused("ok3", Some(3)).contains("ok3 has 4 CPUs"));
        assert!(refused("ok", Some(0)).contains("ok has 1 to"));
        assert!(refused("irq99999999999999999999", None).contains("irq has 1 to"));
        assert!(refused("bug", Some(2)).contains("bug has 3 CPUs"));
        assert_eq!(name("bug", Some(3)), "bug");
    }

    #[test]
    fn who_slips_is_told_the_nearest_names() {
        assert!(refused("bgu", None).contains("did you mean bug"), "{}", refused("bgu", None));
        assert!(!refused("quicksort", None).contains("did you mean"));
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "ab")), (3, 2, 0));
    }
}
