"""tideloop"""
