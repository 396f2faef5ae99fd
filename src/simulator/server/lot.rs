//! What chance decides about a task: its id, whether it fails, whether its callback is lost. Pure.

use fastrand::Rng;
use uuid::{Builder, Uuid};

use super::settings::Settings;

/// Spreads the seeds of neighbouring tasks: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The lot of one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lot {
    pub(super) id: String,
    pub(super) fails: bool,
    pub(super) loses_callback: bool,
}

/// Draws for the task with this number. Everything is drawn in any case, so that changing one rate does not change the others' lots.
pub(super) fn draw(settings: &Settings, number: u64, product: &str) -> Lot {
    let mut dice = Rng::with_seed(settings.seed ^ number.wrapping_mul(SPREAD));
    let uuid = Builder::from_random_bytes(dice.u128(..).to_be_bytes()).into_uuid();
    Lot {
        id: id(product, uuid),
        fails: dice.u8(..100) < settings.fail_percent,
        loses_callback: dice.u8(..100) < settings.lose_percent,
    }
}

/// Kling's documented photos have ids that are no UUIDs: a word, and four of its five groups.
fn id(product: &str, uuid: Uuid) -> String {
    let text = uuid.to_string();
    match text.rsplit_once('-') {
        Some((groups, _)) if product.ends_with("-photo") => format!("photo-{groups}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lots(settings: &Settings) -> Vec<Lot> {
        (0..1_000).map(|n| draw(settings, n, "veo")).collect()
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_seed_does_not() {
        let settings = |seed| Settings {
            seed,
            fail_percent: 50,
            lose_percent: 50,
            ..Settings::default()
        };
        assert_eq!(lots(&settings(7)), lots(&settings(7)));
        assert_ne!(lots(&settings(7)), lots(&settings(8)));
    }

    #[test]
    fn rates_are_kept_and_do_not_change_each_other() {
        let count = |fail_percent, lose_percent| {
            let lots = lots(&Settings {
                fail_percent,
                lose_percent,
                ..Settings::default()
            });
            let fails = lots.iter().filter(|lot| lot.fails).count();
            let lost = lots.iter().filter(|lot| lot.loses_callback).count();
            (fails, lost)
        };
        assert_eq!(count(0, 100), (0, 1_000));
        assert_eq!(count(100, 0), (1_000, 0));
        let (fails, lost) = count(20, 20);
        assert!((150..250).contains(&fails) && (150..250).contains(&lost));
        assert_eq!(count(20, 0).0, fails);
    }

    #[test]
    fn no_two_tasks_have_one_id_and_photos_have_no_uuid() {
        let ids: std::collections::BTreeSet<_> = lots(&Settings::default())
            .into_iter()
            .map(|lot| lot.id)
            .collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| Uuid::parse_str(id).is_ok()));
        let photo = draw(&Settings::default(), 0, "kling-o1-photo").id;
        assert!(photo.starts_with("photo-") && Uuid::parse_str(&photo[6..]).is_err());
    }
}
