"""What is kept in SQL: schedules, batches, and the history of what has finished."""
