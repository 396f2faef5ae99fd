//! Quarantined callbacks as the database has them: each encrypted by a key of its own, so that to forget one is to overwrite its key.
//!
//! What is removed from the database stays in its journal and its tables, until they are rewritten some day; on a quiet broker that
//! may take years, and nothing hurries it. So the database never gets to see a callback in plain. The keys lie side by side in a file
//! beside it, 32 bytes each, and 32 zeros where there is none. This is no protection against anybody who reads the data directory: it
//! has the keys, and the log.
//!
//! ```text
//! value in the database   slot of its key (u32, little-endian), ciphertext and tag (ChaCha20-Poly1305; what is authenticated
//!                         beside it is the callback's number; a key is used once, so the nonce is zero)
//! ```
//!
//! Like everything in the database a key is synced at checkpoints, and the log tells the callback again that has lost it before.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::{BufMut, Bytes};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use super::{layout::Damaged, lock};

pub(super) const FILE: &str = "quarantine.keys";
const KEY_BYTES: usize = 32;
const SLOT_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// What a sealed value has beside the value.
pub(super) const OVERHEAD_BYTES: usize = SLOT_BYTES + TAG_BYTES;
const NONE: [u8; KEY_BYTES] = [0; KEY_BYTES];
const DAMAGED: Damaged = Damaged("quarantine entry, or its key");

/// See the module's description.
#[derive(Debug)]
pub(super) struct QuarantineKeys {
    file: File,
    random: SystemRandom,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    /// By the number of its callback.
    taken: HashMap<u64, u32>,
    free: Vec<u32>,
    /// Slots that the file has.
    count: u32,
}

impl QuarantineKeys {
    /// Opens the keys of a data directory, or begins them. Which are in use is told by [`Self::erase_unused_keys`].
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(FILE))?;
        // A last one that is cut off was never in use.
        let count = u32::try_from(file.metadata()?.len().div_ceil(KEY_BYTES as u64))
            .map_err(io::Error::other)?;
        file.set_len(place_of(count))?;
        let slots = Slots {
            count,
            ..Slots::default()
        };
        Ok(Self {
            file,
            random: SystemRandom::new(),
            slots: slots.into(),
        })
    }

    /// Encrypts a callback by a new key. One that the number had before is still there, until [`Self::erase_unused_keys`].
    pub(super) fn seal(&self, number: u64, value: &[u8]) -> io::Result<Vec<u8>> {
        let mut key = NONE;
        self.random
            .fill(&mut key)
            .map_err(|_| io::Error::other("the system gives no random numbers"))?;
        // The lock is held: a copy of the keys must not come between.
        let mut slots = lock(&self.slots);
        let slot = slots.free.last().copied().unwrap_or(slots.count);
        // A slot that cannot be written stays free.
        self.file.write_all_at(&key, place_of(slot))?;
        slots.free.pop();
        slots.count = slots.count.max(slot + 1);
        slots.taken.insert(number, slot);
        drop(slots);
        let mut sealed = Vec::with_capacity(value.len() + OVERHEAD_BYTES);
        sealed.put_u32_le(slot);
        sealed.put_slice(value);
        let tag = cipher(&key).seal_in_place_separate_tag(
            nonce(),
            aad(number),
            &mut sealed[SLOT_BYTES..],
        );
        sealed.put_slice(
            tag.map_err(|_| io::Error::other("a callback is too large to be encrypted"))?
                .as_ref(),
        );
        Ok(sealed)
    }

    /// Decrypts a callback.
    pub(super) fn unseal(&self, number: u64, sealed: &[u8]) -> Result<Bytes, Damaged> {
        let mut key = NONE;
        self.file
            .read_exact_at(&mut key, place_of(slot_of(sealed)?))
            .map_err(|_| DAMAGED)?;
        unseal(&key, number, sealed)
    }

    /// Takes note of the key that a callback in the database has.
    pub(super) fn note(&self, number: u64, sealed: &[u8]) {
        if let Ok(slot) = slot_of(sealed) {
            lock(&self.slots).taken.insert(number, slot);
        }
    }

    /// Overwrites all keys that no callback has.
    pub(super) fn erase_unused_keys(&self) -> io::Result<()> {
        let mut slots = lock(&self.slots);
        let taken: std::collections::HashSet<_> = slots.taken.values().copied().collect();
        slots.free = (0..slots.count)
            .filter(|slot| !taken.contains(slot))
            .collect();
        slots
            .free
            .iter()
            .try_for_each(|&slot| self.file.write_all_at(&NONE, place_of(slot)))
    }

    /// Overwrites the keys of callbacks: nobody can read them any more, wherever the database still has them.
    pub(super) fn forget(&self, numbers: &[u64]) -> io::Result<()> {
        let mut slots = lock(&self.slots);
        for number in numbers {
            if let Some(slot) = slots.taken.remove(number) {
                self.file.write_all_at(&NONE, place_of(slot))?;
                slots.free.push(slot);
            }
        }
        Ok(())
    }

    /// Makes it durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// All keys as they are now: what is in a backup stays readable for it.
    pub(super) fn copy(&self) -> io::Result<Keys> {
        let slots = lock(&self.slots);
        let mut keys = vec![0; slots.count as usize * KEY_BYTES];
        self.file.read_exact_at(&mut keys, 0)?;
        Ok(Keys(keys.into()))
    }
}

/// Keys as they were.
#[derive(Clone)]
pub(super) struct Keys(Arc<[u8]>);

impl Keys {
    /// Decrypts a callback.
    pub(super) fn unseal(&self, number: u64, sealed: &[u8]) -> Result<Bytes, Damaged> {
        let start = usize::try_from(place_of(slot_of(sealed)?)).map_err(|_| DAMAGED)?;
        let key = self
            .0
            .get(start..)
            .and_then(|keys| keys.first_chunk())
            .ok_or(DAMAGED)?;
        unseal(key, number, sealed)
    }
}

fn place_of(slot: u32) -> u64 {
    u64::from(slot) * KEY_BYTES as u64
}

fn slot_of(sealed: &[u8]) -> Result<u32, Damaged> {
    sealed
        .first_chunk()
        .map(|slot| u32::from_le_bytes(*slot))
        .ok_or(DAMAGED)
}

fn unseal(key: &[u8; KEY_BYTES], number: u64, sealed: &[u8]) -> Result<Bytes, Damaged> {
    // A key of zeros is none: what was sealed by it would be anybody's.
    if *key == NONE {
        return Err(DAMAGED);
    }
    let mut value = sealed.get(SLOT_BYTES..).ok_or(DAMAGED)?.to_vec();
    let length = cipher(key)
        .open_in_place(nonce(), aad(number), &mut value)
        .map_err(|_| DAMAGED)?
        .len();
    value.truncate(length);
    Ok(value.into())
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(
        UnboundKey::new(&CHACHA20_POLY1305, key).expect("the cipher takes keys of 32 bytes"),
    )
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn aad(number: u64) -> Aad<[u8; 8]> {
    Aad::from(number.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::{collection, prelude::*};

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Seal(u64, Vec<u8>),
        Forget(u64),
        Reopen,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..8u64, collection::vec(any::<u8>(), 0..40)).prop_map(|(number, value)| Step::Seal(number, value)),
            3 => (0..8u64).prop_map(Step::Forget),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn what_is_kept_is_read_and_what_is_forgotten_is_not_wherever_it_still_lies(
            steps in collection::vec(any_step(), 1..30),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut quarantine_keys = QuarantineKeys::open(directory.path()).unwrap();
            // Everything that the database was ever told.
            let (mut kept, mut told) = (HashMap::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Seal(number, value) => {
                        quarantine_keys.forget(&[number]).unwrap();
                        let sealed = quarantine_keys.seal(number, &value).unwrap();
                        prop_assert_eq!(sealed.len(), value.len() + OVERHEAD_BYTES);
                        told.push((number, sealed.clone()));
                        kept.insert(number, (value, sealed));
                    }
                    Step::Forget(number) => {
                        quarantine_keys.forget(&[number]).unwrap();
                        kept.remove(&number);
                    }
                    Step::Reopen => {
                        quarantine_keys = QuarantineKeys::open(directory.path()).unwrap();
                        kept.iter().for_each(|(number, (_, sealed))| quarantine_keys.note(*number, sealed));
                        quarantine_keys.erase_unused_keys().unwrap();
                    }
                }
                let keys = quarantine_keys.copy().unwrap();
                for (number, sealed) in &told {
                    let expected = kept.get(number).filter(|(_, now)| now == sealed).map(|(value, _)| &**value);
                    let (now, as_copied) = (quarantine_keys.unseal(*number, sealed).ok(), keys.unseal(*number, sealed).ok());
                    prop_assert_eq!((now.as_deref(), as_copied.as_deref()), (expected, expected));
                }
                let file = fs::read(directory.path().join(FILE)).unwrap();
                prop_assert_eq!(file.chunks(KEY_BYTES).filter(|key| *key != NONE).count(), kept.len());
            }
            for (number, (value, sealed)) in &kept {
                prop_assert_eq!(quarantine_keys.unseal(number + 1, sealed), Err(DAMAGED), "it is another callback's");
                if value.len() > 8 {
                    prop_assert!(!sealed.windows(value.len()).any(|window| window == value));
                }
                for at in 0..sealed.len() {
                    let mut flipped = sealed.clone();
                    flipped[at] ^= 1;
                    prop_assert!(quarantine_keys.unseal(*number, &flipped).is_err());
                }
            }
        }
    }

    #[test]
    fn a_backup_reads_what_was_there_when_it_began() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine_keys = QuarantineKeys::open(directory.path()).unwrap();
        let sealed = quarantine_keys.seal(7, b"body").unwrap();
        let keys = quarantine_keys.copy().unwrap();
        quarantine_keys.forget(&[7]).unwrap();
        assert_eq!(keys.unseal(7, &sealed).unwrap(), "body");
        assert_eq!(quarantine_keys.unseal(7, &sealed), Err(DAMAGED));
    }

    #[test]
    fn a_key_that_cannot_be_written_takes_no_slot() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine_keys = QuarantineKeys::open(directory.path()).unwrap();
        quarantine_keys.seal(1, b"body").unwrap();
        // As if there was no space.
        let read_only = File::open(directory.path().join(FILE)).unwrap();
        let quarantine_keys = QuarantineKeys {
            file: read_only,
            ..quarantine_keys
        };
        assert!(quarantine_keys.seal(2, b"body").is_err());
        assert!(
            quarantine_keys.copy().is_ok(),
            "a backup has all keys that there are"
        );
        let slots = lock(&quarantine_keys.slots);
        assert_eq!((slots.count, slots.taken.len()), (1, 1));
    }

    #[test]
    fn any_bytes_are_a_value_or_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine_keys = QuarantineKeys::open(directory.path()).unwrap();
        for length in 0..40 {
            assert!(quarantine_keys.unseal(1, &vec![0; length]).is_err());
            assert!(quarantine_keys.unseal(1, &vec![255; length]).is_err());
        }
    }
}
