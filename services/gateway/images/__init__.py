"""From what a request says of a picture to its bytes, without being sent anywhere that it should not go."""
