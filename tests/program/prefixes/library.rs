//! The same store, as a program has it that links the library.

use std::time::{Duration, SystemTime};

use prefold::prefix::KvPrefix;
use prefold::prefix::store::{Keep, PrefixName, Store};

use super::{DAY, World, age, content_id, length};

#[test]
fn a_program_keeps_prefixes_by_the_library() {
    let world = World::new();
    let (a, b) = (world.small("a"), world.small("b"));
    let root = world.path("store");
    let cache = world.path("cache");
    let store = Store::open(root.to_str().unwrap()).unwrap();
    let [(first, new), (again, known)] = [(); 2].map(|()| store.push(&world.path("a")).unwrap());
    assert!(new && !known);
    assert_eq!(first.name, again.name);
    assert_eq!(first.name.to_string(), a);
    assert_eq!(first.bytes, length(&world.path("a")));
    let (second, _) = store.push(&world.path("b")).unwrap();
    age(&world.kept(&a), 2);

    let listed = store.list().unwrap();
    let names: Vec<String> = listed.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, [b.as_str(), &a]);
    let aged = SystemTime::now() - 2 * DAY;
    let apart = aged.duration_since(listed[1].modified.unwrap());
    assert!(apart.unwrap() < Duration::from_secs(600));

    let found = store.find(&content_id(&a)[..8]).unwrap();
    assert_eq!(found, first.name);
    let path = store.pull(&found, &cache).unwrap();
    assert_eq!(path, world.kept(&a));
    assert!(!cache.exists());

    let keep = |younger_than, bytes, fingerprint| Keep {
        younger_than,
        bytes,
        fingerprint,
    };
    let gone = |keep: &Keep, dry: bool| -> Vec<String> {
        let gone = store.stale(keep).unwrap();
        if !dry {
            gone.iter()
                .for_each(|entry| store.remove(&entry.name).unwrap());
        }
        gone.iter().map(|entry| entry.name.to_string()).collect()
    };
    assert_eq!(gone(&keep(Some(DAY), None, None), true), [a.as_str()]);
    assert_eq!(store.list().unwrap().len(), 2);
    // Where nothing is said, nothing is refused.
    assert!(gone(&Keep::default(), true).is_empty());
    let elsewhere = Some("0".repeat(a.len() - 65));
    assert!(gone(&keep(Some(DAY), None, elsewhere), false).is_empty());
    assert_eq!(
        gone(&keep(None, Some(second.bytes), None), false),
        [a.as_str()]
    );
    assert_eq!(store.entry(&second.name).unwrap().bytes, second.bytes);
    store.remove(&second.name).unwrap();
    // Gone is gone, whatever removed it.
    store.remove(&second.name).unwrap();
    assert!(store.entry(&second.name).is_err());
    assert!(store.pull(&second.name, &cache).is_err());
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_name_is_two_hashes() {
    let world = World::new();
    let text = world.small("a");
    let (fingerprint, id) = text.split_once('/').unwrap();
    let name = PrefixName::parse(&text).unwrap();
    assert_eq!(name.to_string(), text);
    assert_eq!((name.fingerprint(), name.content_id()), (fingerprint, id));
    let (prefix, _) = KvPrefix::read(&world.path("a")).unwrap();
    assert_eq!(PrefixName::of(&prefix).unwrap(), name);
    for wrong in [
        "",
        "/",
        id,
        &text[1..],
        &text[..text.len() - 1],
        &format!("{text}0"),
        &format!("/{text}"),
        &format!("{text}/"),
        &format!("{text}\n"),
        &format!(" {text}"),
        &format!("{text}.safetensors"),
        &format!("{}/{id}", &"../".repeat(64)[..fingerprint.len()]),
        &format!("{}/{id}", "g".repeat(fingerprint.len())),
        &format!("{fingerprint}//{}", &id[1..]),
        &text.to_uppercase(),
    ] {
        assert!(PrefixName::parse(wrong).is_none(), "{wrong:?}");
    }
}
