"""What runs in or through Airflow."""
