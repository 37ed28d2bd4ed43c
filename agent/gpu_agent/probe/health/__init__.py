"""Each GPU's health over time, and the tables of reasons and Xids."""
