"""Default timer schedules, apart from the settings so that indexing the app needs nothing else. NCRONTAB, UTC."""

FIND_FAILURES = "0 */5 * * * *"
FOLLOW_UP = "30 * * * * *"
AUDIT = "0 20 * * * *"
